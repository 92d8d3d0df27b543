"""The tables of assets and their shares."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, Row, text
from sqlalchemy.orm import Mapped, mapped_column

from assets.asset import Asset, AssetChanges, ImportSource, UploadSession
from assets.content import Blob, Component
from assets.hints import Hints
from assets.sql.base import Base

#: Key, sha256, size in bytes.
BlobJson = list[str | int]
_LIVE = text("deleted_at_s IS NULL")


class AssetRow(Base):
    __tablename__ = "assets"
    __table_args__ = (
        Index("assets_version", "tenant_id", "name", "version", unique=True),
        # Covers listings of live assets by age.
        Index("assets_live", "tenant_id", "id", sqlite_where=_LIVE, postgresql_where=_LIVE),
        Index("assets_owner_name", "owner", "name"),
        Index("assets_status", "status", "changed_at_s"),
        Index("assets_source", "tenant_id", "source_sha256"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    owner: Mapped[str]
    name: Mapped[str]
    version: Mapped[int]
    kind: Mapped[str]
    created_at_s: Mapped[float]
    changed_at_s: Mapped[float]
    status: Mapped[str]
    status_details: Mapped[str]
    description: Mapped[str]
    visibility: Mapped[str]
    created_by: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    tags: Mapped[list[str]] = mapped_column(JSON)
    trigger_words: Mapped[list[str]] = mapped_column(JSON)
    license: Mapped[str | None]
    labels: Mapped[dict[str, str]] = mapped_column(JSON)
    prediction_type: Mapped[str | None]
    adapter_config: Mapped[dict[str, object] | None] = mapped_column(JSON(none_as_null=True))
    expected_sha256: Mapped[str | None]
    hints: Mapped[dict[str, object] | None] = mapped_column(JSON(none_as_null=True))
    max_bytes: Mapped[int | None] = mapped_column(BigInteger)
    source_url: Mapped[str | None]
    source_repo: Mapped[str | None]
    upload_id: Mapped[str | None]
    upload_bytes: Mapped[int | None] = mapped_column(BigInteger)
    upload_part_bytes: Mapped[int | None] = mapped_column(BigInteger)
    upload_claimed_until_s: Mapped[float | None]
    preview: Mapped[str | None]
    parts: Mapped[dict[Component, BlobJson]] = mapped_column(JSON)
    original: Mapped[BlobJson | None] = mapped_column(JSON(none_as_null=True))
    report: Mapped[dict[str, object]] = mapped_column(JSON)
    #: For the index.
    source_sha256: Mapped[str | None]
    deleted_at_s: Mapped[float | None]
    expires_at_s: Mapped[float | None]
    uses: Mapped[int]
    last_used_at_s: Mapped[float | None]
    revision: Mapped[int]


class ShareRow(Base):
    __tablename__ = "asset_shares"

    tenant_name: Mapped[str] = mapped_column(primary_key=True)
    asset_id: Mapped[str] = mapped_column(primary_key=True, index=True)


#: Fields of an asset in columns of the same name.
_SAME = tuple(
    name for name in Asset.__dataclass_fields__ if name not in ("shared_with", "source", "upload")
)
_SOURCE = ("source_url", "source_repo")
_UPLOAD = ("upload_id", "upload_bytes", "upload_part_bytes", "upload_claimed_until_s")
COLUMNS = (*_SAME, *_SOURCE, *_UPLOAD)


def new_row(asset: Asset, changed_at_s: float) -> AssetRow:
    fields: Any = {name: getattr(asset, name) for name in (*_SAME, "upload")}
    source = asset.source or ImportSource()
    return AssetRow(
        **row_values(fields),
        source_url=source.url,
        source_repo=source.hf_repo,
        changed_at_s=changed_at_s,
    )


def row_values(changes: AssetChanges) -> dict[str, Any]:
    """Return the changed columns."""
    values: dict[str, Any] = dict(changes)
    values.pop("shared_with", None)
    if "parts" in values:
        values["parts"] = {
            component: _blob_values(blob) for component, blob in values["parts"].items()
        }
    if values.get("original") is not None:
        values["original"] = _blob_values(values["original"])
    if "upload" in values:
        upload = values.pop("upload")
        parts = (None,) * 4 if upload is None else astuple(upload)
        values |= dict(zip(_UPLOAD, parts, strict=True))
    for name in ("tags", "trigger_words"):
        if name in values:
            values[name] = list(values[name])
    for name in ("labels", "report"):
        if name in values:
            values[name] = dict(values[name])
    if values.get("hints") is not None:
        values["hints"] = values["hints"].to_json()
    if "report" in values:
        values["source_sha256"] = values["report"].get("source_sha256")
    return values


def _blob_values(blob: Blob) -> BlobJson:
    return [blob.key, blob.sha256, blob.size_bytes]


def asset_of(row: AssetRow | Row[Any], shared_with: tuple[str, ...] = ()) -> Asset:
    values = {name: getattr(row, name) for name in _SAME}
    values["parts"] = {component: Blob(*blob) for component, blob in row.parts.items()}
    values["original"] = None if row.original is None else Blob(*row.original)
    values["hints"] = None if row.hints is None else Hints.from_json(row.hints)
    values["tags"] = tuple(row.tags)
    values["trigger_words"] = tuple(row.trigger_words)
    source = ImportSource(row.source_url, row.source_repo)
    upload = None
    if row.upload_id is not None:
        upload = UploadSession(
            row.upload_id,
            row.upload_bytes or 0,
            row.upload_part_bytes or 0,
            row.upload_claimed_until_s,
        )
    return Asset(
        **values,
        source=None if source == ImportSource() else source,
        upload=upload,
        shared_with=shared_with,
    )
