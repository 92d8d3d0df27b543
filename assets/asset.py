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
#: To creator and owners; the tenant; listed tenants too; everyone.
Visibility = Literal["private", "organisation", "shared", "public"]

ASSET_KINDS: tuple[AssetKind, ...] = get_args(AssetKind)
VISIBILITIES: tuple[Visibility, ...] = get_args(Visibility)

#: Owns the platform's assets.
COMMONS = "commons"
#: OctoAI's name of the served family.
SERVED_ENGINE = "image/stable-diffusion-xl-v1-0"


@dataclass(frozen=True, slots=True)
class Asset:
    """One version of a named asset; its bytes never change. Times are seconds since the epoch.

    ``parts``: canonical blobs (one for a LoRA); ``original``: the file as uploaded; ``report``: of
    the inspection; ``data``: user metadata and upload state; ``shared_with``: tenant names.
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
        """Including the original."""
        return (*self.parts.values(), *((self.original,) if self.original else ()))

    @property
    def is_deleted(self) -> bool:
        return self.status == "deleted" or self.deleted_at_s is not None

    @property
    def is_public(self) -> bool:
        return self.visibility == "public"

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def is_import(self) -> bool:
        """Whether the platform downloads the bytes."""
        return bool(self.data.get("url") or self.data.get("hf_repo"))

    @property
    def preview(self) -> str | None:
        """Its object key."""
        return self.data.get("preview")

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.data.get("tags") or ())

    @property
    def trigger_words(self) -> tuple[str, ...]:
        return tuple(self.data.get("trigger_words") or ())
