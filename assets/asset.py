"""The asset record of the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict, get_args

from assets.content import Blob, Component
from assets.hints import Hints
from assets.prediction import Prediction
from assets.report import Report

AssetKind = Literal["checkpoint", "lora", "textual_inversion", "vae", "style"]
AssetStatus = Literal[
    "ready_to_upload", "uploading", "uploaded", "ready", "rejected", "error", "deleted"
]
#: To creator and owners; the tenant; listed tenants too; everyone.
Visibility = Literal["private", "organisation", "shared", "public"]

#: Bytes may come; from ``uploading`` on, parts are or were assembled. The status never goes back.
INCOMPLETE: tuple[AssetStatus, ...] = ("ready_to_upload", "uploading")

ASSET_KINDS: tuple[AssetKind, ...] = get_args(AssetKind)
VISIBILITIES: tuple[Visibility, ...] = get_args(Visibility)

#: Owns the platform's assets.
COMMONS = "commons"
#: OctoAI's name of the served family.
SERVED_ENGINE = "image/stable-diffusion-xl-v1-0"


@dataclass(frozen=True, slots=True)
class ImportSource:
    """Where the platform downloads the bytes: an URL, or ``owner/name`` or ``owner/name:file`` on
    Hugging Face."""

    url: str | None = None
    hf_repo: str | None = None


@dataclass(frozen=True, slots=True)
class UploadSession:
    """A multipart upload; ``id`` is the store's. All parts but the last have ``part_bytes``.

    ``claimed_until_s``: a call assembles it until then, or has ended. None: no call of this build
    has; of an ``uploading`` asset, one of an earlier build does.
    """

    id: str
    size_bytes: int
    part_bytes: int
    claimed_until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Asset:
    """One version of a named asset; its bytes never change. Times are seconds since the epoch.

    ``parts``: canonical blobs (one for a LoRA); ``original``: the file as uploaded; ``report``: of
    the inspection; ``shared_with``: tenant names; ``labels``: text that clients want back;
    ``prediction_type``, ``adapter_config`` (PEFT's), ``hints`` and ``expected_sha256`` (of the
    file): as the owner declares them; ``max_bytes``: what the plan had room for; ``preview``: its
    object key; ``revision`` counts changes.
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
    tags: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    license: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    prediction_type: Prediction | None = None
    adapter_config: Mapping[str, object] | None = None
    expected_sha256: str | None = None
    hints: Hints | None = None
    max_bytes: int | None = None
    source: ImportSource | None = None
    upload: UploadSession | None = None
    preview: str | None = None
    parts: Mapping[Component, Blob] = field(default_factory=dict)
    original: Blob | None = None
    report: Report = field(default_factory=Report)
    deleted_at_s: float | None = None
    expires_at_s: float | None = None
    uses: int = 0
    last_used_at_s: float | None = None
    revision: int = field(default=0, compare=False)

    @property
    def advice(self) -> Hints:
        """The owner's hints, or else those guessed from the file."""
        return Hints.from_json(self.report.get("hints")) if self.hints is None else self.hints

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
        return self.source is not None


class AssetChanges(TypedDict, total=False):
    """Fields of :class:`Asset` to change."""

    kind: AssetKind
    status: AssetStatus
    status_details: str
    description: str
    visibility: Visibility
    shared_with: tuple[str, ...]
    size_bytes: int
    tags: tuple[str, ...]
    trigger_words: tuple[str, ...]
    license: str | None
    labels: Mapping[str, str]
    prediction_type: Prediction | None
    adapter_config: Mapping[str, object] | None
    hints: Hints | None
    upload: UploadSession | None
    preview: str | None
    parts: Mapping[Component, Blob]
    original: Blob | None
    report: Report
    deleted_at_s: float | None
    expires_at_s: float | None
