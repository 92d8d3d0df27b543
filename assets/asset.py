"""The asset record of the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from assets.content import Blob, Component

AssetKind = Literal["checkpoint", "lora", "textual_inversion", "vae"]
AssetStatus = Literal[
    "ready_to_upload", "uploading", "uploaded", "ready", "rejected", "error", "deleted"
]
#: Visible to: the creator and the tenant's owners; the whole tenant; listed tenants too; everyone.
Visibility = Literal["private", "organisation", "shared", "public"]

ASSET_KINDS: tuple[AssetKind, ...] = get_args(AssetKind)
VISIBILITIES: tuple[Visibility, ...] = get_args(Visibility)

#: The tenant that owns the assets that the platform provides.
COMMONS = "commons"
#: The served model family, as named by OctoAI's API.
SERVED_ENGINE = "image/stable-diffusion-xl-v1-0"


@dataclass(frozen=True, slots=True)
class Asset:
    """One version of a named asset; its bytes never change. Times are seconds since the epoch.

    ``parts`` maps each component of the canonical form to its blob: four for a full checkpoint,
    one for a LoRA; ``original`` is the file as uploaded. ``report`` is the result of inspection.
    ``data`` holds user-supplied metadata and the state of the upload. ``shared_with`` lists tenant
    names.
    """

    id: str
    tenant_id: str
    owner: str
    name: str
    kind: AssetKind
    created_at_s: float
    version: int = 1
    status: AssetStatus = "ready_to_upload"
    status_details: str = ""
    description: str = ""
    visibility: Visibility = "private"
    shared_with: tuple[str, ...] = ()
    created_by: str = ""
    size_bytes: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[Component, Blob] = field(default_factory=dict)
    original: Blob | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    deleted_at_s: float | None = None
    expires_at_s: float | None = None
    uses: int = 0
    last_used_at_s: float | None = None

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Every blob of the asset in the object store, including the original."""
        return (*self.parts.values(), *((self.original,) if self.original else ()))

    @property
    def is_deleted(self) -> bool:
        return self.status == "deleted" or self.deleted_at_s is not None

    @property
    def is_public(self) -> bool:
        return self.visibility == "public"

    @property
    def reference(self) -> str:
        """The owner's reference to this version: ``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def is_import(self) -> bool:
        """Whether the platform downloads the bytes instead of receiving an upload."""
        return bool(self.data.get("url") or self.data.get("hf_repo"))

    @property
    def preview(self) -> str | None:
        """The object key of the preview image."""
        return self.data.get("preview")

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.data.get("tags") or ())

    @property
    def trigger_words(self) -> tuple[str, ...]:
        return tuple(self.data.get("trigger_words") or ())
