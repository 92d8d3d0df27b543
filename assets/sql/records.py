"""The ``assets`` table and its :class:`~assets.records.AssetRecords`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import JSON, BigInteger, Engine, Index, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from assets.asset import Asset
from assets.content import Blob
from assets.errors import NameTaken
from assets.records import Page, Query
from assets.sql.base import Base

_LIVE = text("deleted_at_s IS NULL")


class AssetRow(Base):
    __tablename__ = "assets"
    __table_args__ = (
        Index(
            "assets_live_name",
            "tenant_id",
            "name",
            unique=True,
            sqlite_where=_LIVE,
            postgresql_where=_LIVE,
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(index=True)
    owner: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    kind: Mapped[str]
    created_at_s: Mapped[float]
    changed_at_s: Mapped[float]
    status: Mapped[str] = mapped_column(index=True)
    status_details: Mapped[str]
    description: Mapped[str]
    is_public: Mapped[bool]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    parts: Mapped[dict[str, Any]] = mapped_column(JSON)
    report: Mapped[dict[str, Any]] = mapped_column(JSON)
    deleted_at_s: Mapped[float | None]
    #: What ``Query.text`` and ``Query.tags`` look into.
    words: Mapped[str] = mapped_column(server_default="")


_FIELDS = tuple(Asset.__dataclass_fields__)


def _values(fields: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(fields)
    if "parts" in values:
        values["parts"] = {
            component: [blob.key, blob.sha256, blob.size_bytes]
            for component, blob in values["parts"].items()
        }
    for name in ("data", "report"):
        if name in values:
            values[name] = dict(values[name])
    return values


def _asset(row: AssetRow) -> Asset:
    values = {name: getattr(row, name) for name in _FIELDS}
    values["parts"] = {component: Blob(*blob) for component, blob in row.parts.items()}
    return Asset(**values)


def _words(asset: Asset) -> str:
    tags = "".join(f"#{tag}\n" for tag in asset.tags)
    found_by = (asset.name, asset.description, *asset.trigger_words)
    return f"{' '.join(found_by)}\n{tags}".casefold()


class SqlAssetRecords:
    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def add(self, asset: Asset) -> None:
        values = _values({name: getattr(asset, name) for name in _FIELDS})
        try:
            with Session(self._engine) as session, session.begin():
                session.add(AssetRow(**values, changed_at_s=self._now(), words=_words(asset)))
        except IntegrityError:
            raise NameTaken(asset.name) from None

    def get(self, asset_id: str) -> Asset | None:
        return self._one(AssetRow.id == asset_id)

    def find(self, tenant_id: str, name: str) -> Asset | None:
        return self._one(
            AssetRow.tenant_id == tenant_id, AssetRow.name == name, AssetRow.deleted_at_s.is_(None)
        )

    def find_public(self, owner: str, name: str) -> Asset | None:
        return self._one(
            AssetRow.owner == owner,
            AssetRow.name == name,
            AssetRow.is_public.is_(True),
            AssetRow.deleted_at_s.is_(None),
        )

    def _one(self, *conditions: Any) -> Asset | None:
        with Session(self._engine) as session:
            row = session.scalars(select(AssetRow).where(*conditions).limit(1)).first()
            return None if row is None else _asset(row)

    def update(
        self, asset_id: str, changes: Mapping[str, Any], *, expect: Sequence[str] = ()
    ) -> Asset | None:
        condition = [AssetRow.id == asset_id]
        if expect:
            condition.append(AssetRow.status.in_(expect))
        values = {**_values(changes), "changed_at_s": self._now()}
        try:
            with Session(self._engine) as session, session.begin():
                # One statement: the status is compared where it is changed, on every database.
                result = session.execute(update(AssetRow).where(*condition).values(**values))
                if result.rowcount != 1:  # type: ignore[attr-defined]
                    return None
                row = session.get(AssetRow, asset_id)
                if row is None:
                    return None
                asset = _asset(row)
                row.words = _words(asset)
            return asset
        except IntegrityError:
            raise NameTaken(str(changes.get("name", asset_id))) from None

    def list(self, query: Query) -> Page:
        conditions: list[Any] = [AssetRow.deleted_at_s.is_(None)]
        for column, value in (
            (AssetRow.tenant_id, query.tenant_id),
            (AssetRow.is_public, query.is_public),
            (AssetRow.status, query.status),
            (AssetRow.owner, query.owner),
            (AssetRow.name, query.name),
        ):
            if value is not None:
                conditions.append(column == value)
        if query.kinds:
            conditions.append(AssetRow.kind.in_(query.kinds))
        wanted = query.text.casefold().split()
        wanted += [f"\n#{tag.casefold()}\n" for tag in query.tags]
        conditions += [AssetRow.words.contains(part, autoescape=True) for part in wanted]
        if query.ids:
            conditions.append(AssetRow.id.in_(query.ids))
        with Session(self._engine) as session:
            total = session.scalar(select(func.count()).select_from(AssetRow).where(*conditions))
            rows = session.scalars(
                select(AssetRow)
                .where(*conditions)
                .order_by(AssetRow.id)
                .limit(query.limit)
                .offset(query.offset)
            )
            return Page([_asset(row) for row in rows], total or 0)

    def stale_uploads(self, before_s: float) -> Sequence[Asset]:
        with Session(self._engine) as session:
            rows = session.scalars(
                select(AssetRow).where(
                    AssetRow.status == "uploaded", AssetRow.changed_at_s < before_s
                )
            )
            return [_asset(row) for row in rows]
