"""An asset as the library records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from assets.content import Blob, Component

AssetKind = Literal["checkpoint", "lora", "textual_inversion", "vae"]
AssetStatus = Literal[
    "ready_to_upload", "uploading", "uploaded", "ready", "rejected", "error", "deleted"
]
#: Its maker's and the owners'; the whole organisation's; other named tenants' too; everybody's.
Visibility = Literal["private", "organisation", "shared", "public"]

ASSET_KINDS: tuple[AssetKind, ...] = get_args(AssetKind)
VISIBILITIES: tuple[Visibility, ...] = get_args(Visibility)

#: The tenant that owns what the platform itself provides.
COMMONS = "commons"
#: What OctoAI's clients call the family of models that is served.
SERVED_ENGINE = "image/stable-diffusion-xl-v1-0"


@dataclass(frozen=True, slots=True)
class Asset:
    """One row of the library: one version under a name, whose bytes never change. Times are
    seconds since the epoch.

    ``parts`` maps each component that the canonical form holds to its blob: four
    for a full checkpoint, one for a LoRA; ``original`` is the file as it was uploaded.
    ``report`` is what inspection found, for its owner. ``data`` is what people say of it.
    ``shared_with`` are names of tenants.
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
        """All that the store keeps for it."""
        return (*self.parts.values(), *((self.original,) if self.original else ()))

    @property
    def is_deleted(self) -> bool:
        return self.status == "deleted" or self.deleted_at_s is not None

    @property
    def is_public(self) -> bool:
        return self.visibility == "public"

    @property
    def reference(self) -> str:
        """How its owner names this very version."""
        return f"{self.name}@{self.version}"

    @property
    def is_import(self) -> bool:
        """Whether the platform fetches its bytes itself."""
        return bool(self.data.get("url") or self.data.get("hf_repo"))

    @property
    def preview(self) -> str | None:
        """The key of its preview picture in the store."""
        return self.data.get("preview")

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.data.get("tags") or ())

    @property
    def trigger_words(self) -> tuple[str, ...]:
        return tuple(self.data.get("trigger_words") or ())
