"""The tables of assets and their shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, Row, text
from sqlalchemy.orm import Mapped, mapped_column

from assets.asset import Asset
from assets.content import Blob
from assets.sql.base import Base

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
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    parts: Mapped[dict[str, Any]] = mapped_column(JSON)
    original: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    report: Mapped[dict[str, Any]] = mapped_column(JSON)
    #: For the index.
    source_sha256: Mapped[str | None]
    deleted_at_s: Mapped[float | None]
    expires_at_s: Mapped[float | None]
    uses: Mapped[int]
    last_used_at_s: Mapped[float | None]


class ShareRow(Base):
    __tablename__ = "asset_shares"

    tenant_name: Mapped[str] = mapped_column(primary_key=True)
    asset_id: Mapped[str] = mapped_column(primary_key=True, index=True)


#: Fields that are columns of :class:`AssetRow`.
FIELDS = tuple(name for name in Asset.__dataclass_fields__ if name != "shared_with")


def row_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in fields.items() if name != "shared_with"}
    if "parts" in values:
        values["parts"] = {
            component: _blob_values(blob) for component, blob in values["parts"].items()
        }
    if values.get("original") is not None:
        values["original"] = _blob_values(values["original"])
    for name in ("data", "report"):
        if name in values:
            values[name] = dict(values[name])
    if "report" in values:
        values["source_sha256"] = values["report"].get("source_sha256")
    return values


def _blob_values(blob: Blob) -> list[Any]:
    return [blob.key, blob.sha256, blob.size_bytes]


def asset_of(row: AssetRow | Row[Any], shared_with: tuple[str, ...] = ()) -> Asset:
    values = {name: getattr(row, name) for name in FIELDS}
    values["parts"] = {component: Blob(*blob) for component, blob in row.parts.items()}
    values["original"] = None if row.original is None else Blob(*row.original)
    return Asset(**values, shared_with=shared_with)
