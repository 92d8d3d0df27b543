"""Bodies of the Asset Library, with the fields that OctoAI's clients require."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from assets.asset import SERVED_ENGINE, AssetKind, AssetStatus, ImportSource, Visibility
from assets.asset import Asset as Record
from assets.hints import Hints
from assets.kinds import KINDS
from serving.api.models.common import Timestamp, timestamp
from serving.api.models.hints import AssetHints


class AssetLabels(BaseModel):
    """What OctoAI's clients read of an asset; ``trigger_words`` and ``checkpoint`` if its kind has
    them."""

    asset_type: AssetKind
    engine: str
    data_type: str
    file_format: Literal["safetensors"]
    trigger_words: list[str] | None = None
    checkpoint: str | None = None

    @classmethod
    def of(cls, asset: Record) -> AssetLabels:
        labels = cls(
            asset_type=asset.kind,
            engine=asset.labels.get("engine", SERVED_ENGINE),
            data_type=asset.labels.get("data_type", "fp16"),
            file_format="safetensors",
        )
        if KINDS[asset.kind].has_trigger_words:
            labels.trigger_words = list(asset.trigger_words)
        if KINDS[asset.kind].names_checkpoint:
            labels.checkpoint = asset.labels.get("checkpoint")
        return labels


class InspectionReport(BaseModel):
    """What the inspection of the file found; kinds of assets add facts of their own."""

    model_config = ConfigDict(extra="allow")

    kind: AssetKind | None = None
    family: str | None = None
    evidence: str | None = None
    tensors: int | None = None
    dtypes: list[str] | None = None
    matched: int | None = None
    unmatched: list[str] | None = None
    warnings: list[str] | None = None
    reasons: list[str] | None = None
    training: dict[str, str] | None = None


class Asset(BaseModel):
    """An asset; fields from ``revision`` on need the right to inspect it."""

    id: str
    asset_type: AssetKind
    name: str
    version: int
    owner: str
    description: str
    size_bytes: int
    status: AssetStatus
    status_details: str
    created_at: Timestamp
    tenant_uuid: str
    is_public: bool
    file_structure: Literal["single_file"]
    data: AssetLabels
    tags: list[str]
    license: str | None
    #: The former name.
    licence: str | None
    preview_url: str | None
    expires_at: Timestamp | None
    revision: int | None = None
    visibility: Visibility | None = None
    shared_with: list[str] | None = None
    created_by: str | None = None
    sha256: str | None = None
    uses: int | None = None
    last_used_at: Timestamp | None = None
    url: str | None = None
    hf_repo: str | None = None
    hints: AssetHints | None = None
    report: InspectionReport | None = None

    @classmethod
    def of(cls, asset: Record, *, inspected: bool, preview_url: str | None = None) -> Asset:
        """``inspected`` adds report, sharing and usage."""
        body = cls(
            id=asset.id,
            asset_type=asset.kind,
            name=asset.name,
            version=asset.version,
            owner=asset.owner,
            description=asset.description,
            size_bytes=asset.size_bytes,
            status=asset.status,
            status_details=asset.status_details,
            created_at=timestamp(asset.created_at_s),
            tenant_uuid=_uuid(asset.tenant_id),
            is_public=asset.is_public,
            file_structure="single_file",
            data=AssetLabels.of(asset),
            tags=list(asset.tags),
            license=asset.license,
            licence=asset.license,
            preview_url=preview_url,
            expires_at=_time(asset.expires_at_s),
        )
        if asset.advice:
            body.hints = _hints(asset.advice)
        if inspected:
            source = asset.source or ImportSource()
            body.revision = asset.revision
            body.visibility = asset.visibility
            body.shared_with = list(asset.shared_with)
            body.created_by = asset.created_by
            body.sha256 = asset.expected_sha256
            body.uses = asset.uses
            body.last_used_at = _time(asset.last_used_at_s)
            body.url = _without_query(source.url)
            body.hf_repo = source.hf_repo
            body.report = InspectionReport.model_validate(asset.report)
        return body


def _hints(advice: Hints) -> AssetHints:
    """Not validated: a later release may have written them."""
    values: dict[str, Any] = {**advice.to_json()}
    return AssetHints.model_construct(set(values), **values)


def _time(at_s: float | None) -> str | None:
    return timestamp(at_s) if at_s else None


def _without_query(url: str | None) -> str | None:
    """The query may contain a signature."""
    return url and url.partition("?")[0]


def _uuid(tenant_id: str) -> str:
    """Clients parse it; the commons has no tenant row."""
    return tenant_id if len(tenant_id) == 36 else "00000000-0000-0000-0000-000000000000"


class Transfer(BaseModel):
    """A file transfer; disallowed URLs are empty."""

    type: Literal["presigned-url", "multipart"]
    put_url: str | None = None
    get_url: str | None = None
    sha256: str | None = None
    upload_url: str | None = None


class OneAsset(BaseModel):
    asset: Asset


class AssetWithTransfer(OneAsset):
    transfer_api: Transfer


class CreatedAsset(AssetWithTransfer):
    """A new asset; the empty ``token`` is for OctoAI's clients."""

    token: str = ""


class AssetPage(BaseModel):
    """A page of assets; ``next`` is the next ``after``."""

    data: list[Asset]
    has_more: bool
    total: int
    next: str | None


class ArrivedPart(BaseModel):
    number: int
    size_bytes: int


class MissingPart(ArrivedPart):
    """A part to upload, from ``offset`` on."""

    offset: int
    put_url: str


class UploadState(BaseModel):
    asset_id: str
    size_bytes: int
    part_bytes: int
    part_count: int
    parts: list[ArrivedPart]
    missing: list[MissingPart]


class DeletedAsset(BaseModel):
    id: str
    deleted_at: Timestamp

    @classmethod
    def of(cls, asset: Record) -> DeletedAsset:
        return cls(id=asset.id, deleted_at=timestamp(asset.deleted_at_s or 0.0))


class Completed(BaseModel):
    error: None = None


class Received(BaseModel):
    size_bytes: int
