"""The SQL implementation of :class:`~assets.library.records.AssetRecords`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from sqlalchemy import ColumnElement, Engine, Row, case, delete, func, or_, select, update
from sqlalchemy.orm import Session

from assets.asset import Asset, AssetChanges, AssetStatus
from assets.errors import NameTaken, QuotaExceeded
from assets.ids import new_asset_id
from assets.kinds import kinds_with
from assets.library.records import Page, Query
from assets.sql.base import alone, rows_changed
from assets.sql.blobs import BlobRefRow, refer
from assets.sql.rows import COLUMNS, AssetRow, ShareRow, asset_of, new_row, row_values
from assets.sql.search_index import assets_matching, index_words, search_terms

_IS_LIVE = AssetRow.deleted_at_s.is_(None)
#: False for a purged row.
_HAS_CONTENT = or_(AssetRow.description != "", AssetRow.size_bytes > 0, AssetRow.hints.is_not(None))
_HAS_BLOBS = AssetRow.id.in_(select(BlobRefRow.asset_id))
#: Plain columns read faster than ORM objects.
_ROWS = select(*(getattr(AssetRow, name) for name in COLUMNS))
_NEXT: Mapping[str, object] = {"revision": AssetRow.revision + 1}
#: Of a purged asset; what may change is a blank asset's but for these.
_REMAINS = ("kind", "status", "visibility", "shared_with", "deleted_at_s", "expires_at_s")
_BLANK = Asset("", "", "", "", "lora", 0.0, report={"purged": True})
_EMPTY = cast(
    AssetChanges,
    {name: getattr(_BLANK, name) for name in AssetChanges.__annotations__ if name not in _REMAINS},
)
_BEST_FIRST = (case((AssetRow.status == "ready", 0), else_=1), AssetRow.version.desc())


class SqlAssetRecords:
    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def add(self, asset: Asset, *, new_version: bool = False, most: int | None = None) -> Asset:
        of_tenant = AssetRow.tenant_id == asset.tenant_id
        namesakes = (of_tenant, AssetRow.name == asset.name)
        with Session(self._engine) as session, session.begin():
            alone(session, asset.tenant_id)
            if most is not None:
                count = session.scalar(select(func.count(AssetRow.id)).where(of_tenant, _IS_LIVE))
                if (count or 0) >= most:
                    raise QuotaExceeded("assets", most)
            if not new_version and session.scalar(select(AssetRow.id).where(*namesakes, _IS_LIVE)):
                raise NameTaken(asset.name)
            last = session.scalar(select(func.max(AssetRow.version)).where(*namesakes))
            asset = replace(asset, version=(last or 0) + 1)
            session.add(new_row(asset, self._now()))
            index_words(session, asset)
            refer(session, asset.id, asset.blobs, self._now())
            _set_shares(session, asset.id, asset.shared_with)
        return asset

    def get(self, asset_id: str) -> Asset | None:
        return self._best(AssetRow.id == asset_id)

    def find(
        self, tenant_id: str, name: str, version: int | None = None, member_id: str | None = None
    ) -> Asset | None:
        namesakes = (AssetRow.tenant_id == tenant_id, AssetRow.name == name, _IS_LIVE)
        return self._best(*namesakes, *_has_version(version), *_visible_to(member_id))

    def find_foreign(
        self, owner: str, name: str, version: int | None = None, reader: str = ""
    ) -> Asset | None:
        shared = select(ShareRow.asset_id).where(ShareRow.tenant_name == reader)
        is_shared = (AssetRow.visibility == "shared") & AssetRow.id.in_(shared)
        return self._best(
            AssetRow.owner == owner,
            AssetRow.name == name,
            or_(AssetRow.visibility == "public", is_shared),
            _IS_LIVE,
            *_has_version(version),
        )

    def _best(self, *conditions: ColumnElement[bool]) -> Asset | None:
        query = _ROWS.where(*conditions).order_by(*_BEST_FIRST).limit(1)
        with Session(self._engine) as session:
            assets = _assets(session, session.execute(query).all())
            return assets[0] if assets else None

    def update(
        self,
        asset_id: str,
        changes: AssetChanges,
        *,
        expect: Sequence[AssetStatus] = (),
        revision: int | None = None,
    ) -> Asset | None:
        condition = [AssetRow.id == asset_id]
        if expect:
            condition.append(AssetRow.status.in_(expect))
        if revision is not None:
            condition.append(AssetRow.revision == revision)
        values = {**row_values(changes), "changed_at_s": self._now(), **_NEXT}
        with Session(self._engine) as session, session.begin():
            # One statement: an atomic comparison of status and revision.
            result = session.execute(update(AssetRow).where(*condition).values(**values))
            if rows_changed(result) != 1:
                return None
            if "shared_with" in changes:
                _set_shares(session, asset_id, changes["shared_with"])
            row = session.get_one(AssetRow, asset_id)
            (asset,) = _assets(session, [row])
            if {"parts", "original"} & changes.keys():
                refer(session, asset_id, asset.blobs, self._now())
            if {"tags", "trigger_words", "description", "deleted_at_s"} & changes.keys():
                index_words(session, asset)
        return asset

    def purge(self, asset_id: str) -> bool:
        with Session(self._engine) as session, session.begin():
            row = session.get(AssetRow, asset_id)
            if row is None or row.deleted_at_s is None:
                return False
            alone(session, row.tenant_id)
            namesakes = (AssetRow.tenant_id == row.tenant_id, AssetRow.name == row.name)
            later = select(AssetRow.id).where(*namesakes, AssetRow.version > row.version).limit(1)
            was_inspected = bool(row.parts or row.report or row.hints)
            _set_shares(session, asset_id, ())
            refer(session, asset_id, (), self._now())
            if was_inspected and session.scalar(later) is None:
                # The emptied row reserves its version number.
                emptied = row_values(_EMPTY)
                session.execute(
                    update(AssetRow)
                    .where(AssetRow.id == asset_id)
                    .values(**emptied, source_url=None, source_repo=None,
                            expected_sha256=None, changed_at_s=self._now(), **_NEXT)
                )  # fmt: skip
                session.flush()
                lower = (*namesakes, AssetRow.version < row.version, ~_IS_LIVE)
                session.execute(delete(AssetRow).where(*lower, ~_HAS_BLOBS, ~_HAS_CONTENT))
            else:
                session.delete(row)
        return True

    def rename(self, asset_id: str, name: str, *, revision: int | None = None) -> Asset | None:
        with Session(self._engine) as session, session.begin():
            row = session.get(AssetRow, asset_id)
            if row is None or row.deleted_at_s is not None:
                return None
            alone(session, row.tenant_id)
            # Locked: an update in between would be overwritten.
            session.refresh(row, with_for_update=True)
            if revision is not None and row.revision != revision:
                return None
            if row.name != name:
                of_tenant = (AssetRow.tenant_id == row.tenant_id,)
                namesakes = (*of_tenant, AssetRow.name == name)
                if session.scalar(select(AssetRow.id).where(*namesakes, _IS_LIVE)):
                    raise NameTaken(name)
                # The new name's numbers continue; a deleted row reserves the old name's.
                used = session.scalar(select(func.max(AssetRow.version)).where(*namesakes)) or 0
                series = (*of_tenant, AssetRow.name == row.name, _IS_LIVE)
                locked = select(AssetRow).where(*series).with_for_update()
                fresh = locked.execution_options(populate_existing=True)
                versions = session.scalars(fresh).all()
                last = max(versions, key=lambda version: version.version)
                placeholder = replace(
                    replace(asset_of(last), **_EMPTY), id=new_asset_id(self._now()),
                    status="deleted", status_details=f"renamed to {name}", source=None,
                    expected_sha256=None, deleted_at_s=self._now(),
                )  # fmt: skip
                session.flush()
                for version in versions:
                    version.name, version.version = name, version.version + used
                    version.changed_at_s = self._now()
                    version.revision += 1
                    index_words(session, asset_of(version))
                session.flush()
                session.add(new_row(placeholder, self._now()))
                session.flush()
            (asset,) = _assets(session, [row])
        return asset

    def used(self, asset_ids: Sequence[str]) -> None:
        values = {"uses": AssetRow.uses + 1, "last_used_at_s": self._now()}
        with Session(self._engine) as session, session.begin():
            session.execute(update(AssetRow).where(AssetRow.id.in_(asset_ids)).values(**values))

    def list(self, query: Query) -> Page:
        """Return one page. Raises InvalidAsset: too many search terms."""
        terms = search_terms(query.text, query.tags)
        if query.text.strip() and not any(word for word in terms if not word.startswith("#")):
            return Page([], 0, has_more=False)  # the text contains no word
        conditions = _conditions(query)
        if terms:
            conditions.append(AssetRow.id.in_(assets_matching(terms, query.tenant_id)))
        # The conditions are evaluated once.
        found = select(AssetRow.id).where(*conditions).cte("found")
        page = select(found.c.id).where(found.c.id > query.after).order_by(found.c.id)
        page = page.limit(query.limit + 1).offset(query.offset)
        total = select(func.count()).select_from(found).scalar_subquery()
        with Session(self._engine) as session:
            on_page = _ROWS.where(AssetRow.id.in_(page)).order_by(AssetRow.id)
            rows = session.execute(on_page.add_columns(total.label("total"))).all()
            count = rows[0].total if rows else session.scalar(select(total)) or 0
            assets = _assets(session, rows)
        return Page(assets[: query.limit], count, has_more=len(assets) > query.limit)

    def previews(self) -> set[str]:
        is_restorable = or_(_IS_LIVE, _HAS_BLOBS)
        keys = select(AssetRow.preview).where(is_restorable)
        with Session(self._engine) as session:
            return {key for key in session.scalars(keys) if key}

    def referred(self) -> Mapping[str, Sequence[str]]:
        references = (
            select(BlobRefRow.blob_key, BlobRefRow.asset_id)
            .join(AssetRow, AssetRow.id == BlobRefRow.asset_id)
            .where(_IS_LIVE, AssetRow.status == "ready")
        )
        asset_ids: dict[str, list[str]] = defaultdict(list)
        with Session(self._engine) as session:
            for key, asset_id in session.execute(references):
                asset_ids[key].append(asset_id)
        return asset_ids

    def miskeyed(self) -> Sequence[Asset]:
        salted = select(BlobRefRow.asset_id).where(BlobRefRow.blob_key.startswith("t"))
        plain = select(BlobRefRow.asset_id).where(BlobRefRow.blob_key.startswith("p"))
        is_public = AssetRow.visibility == "public"
        wrong = or_(is_public & AssetRow.id.in_(salted), ~is_public & AssetRow.id.in_(plain))
        by_visibility = self._all(_IS_LIVE, AssetRow.status == "ready", wrong)
        by_prediction = self._all(
            _IS_LIVE, AssetRow.status == "ready",
            AssetRow.kind.in_(kinds_with(lambda traits: traits.has_prediction_type)),
            AssetRow.report["prediction_type"]["value"].as_string()
            != AssetRow.prediction_type,
        )  # fmt: skip
        return [*by_visibility, *by_prediction]

    def forgotten(self, before_s: float) -> Sequence[Asset]:
        return self._all(AssetRow.deleted_at_s < before_s, or_(_HAS_BLOBS, _HAS_CONTENT))

    def restorable(self, tenant_id: str) -> Sequence[Asset]:
        deleted = self._all(AssetRow.tenant_id == tenant_id, ~_IS_LIVE, _HAS_BLOBS)
        return sorted(deleted, key=lambda asset: asset.deleted_at_s or 0.0)

    def stale(self, status: str, before_s: float) -> Sequence[Asset]:
        return self._all(AssetRow.status == status, AssetRow.changed_at_s < before_s)

    def expired(self, now_s: float) -> Sequence[Asset]:
        return self._all(AssetRow.expires_at_s <= now_s, _IS_LIVE)

    def _all(self, *conditions: ColumnElement[bool]) -> Sequence[Asset]:
        with Session(self._engine) as session:
            return _assets(session, session.execute(_ROWS.where(*conditions)).all())


def _visible_to(member_id: str | None) -> tuple[ColumnElement[bool], ...]:
    """Not private to another member; None sees all."""
    if member_id is None:
        return ()
    return (or_(AssetRow.visibility != "private", AssetRow.created_by == member_id),)


def _conditions(query: Query) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [_IS_LIVE]
    for column, value in (
        (AssetRow.tenant_id, query.tenant_id),
        (AssetRow.visibility, query.visibility),
        (AssetRow.status, query.status),
        (AssetRow.owner, query.owner),
        (AssetRow.name, query.name),
        (AssetRow.source_sha256, query.sha256),
    ):
        if value is not None:
            conditions.append(column == value)
    conditions += _visible_to(query.member_id)
    if query.shared_with is not None:
        shared = select(ShareRow.asset_id).where(ShareRow.tenant_name == query.shared_with)
        conditions += [AssetRow.visibility == "shared", AssetRow.id.in_(shared)]
    if query.kinds:
        conditions.append(AssetRow.kind.in_(query.kinds))
    if query.ids:
        conditions.append(AssetRow.id.in_(query.ids))
    return conditions


def _has_version(version: int | None) -> tuple[ColumnElement[bool], ...]:
    return () if version is None else (AssetRow.version == version,)


def _assets(session: Session, rows: Sequence[AssetRow | Row[Any]]) -> list[Asset]:
    shared: dict[str, list[str]] = defaultdict(list)
    ids = [row.id for row in rows if row.visibility == "shared"]
    if ids:
        shares = select(ShareRow).where(ShareRow.asset_id.in_(ids)).order_by(ShareRow.tenant_name)
        for share in session.scalars(shares):
            shared[share.asset_id].append(share.tenant_name)
    return [asset_of(row, tuple(shared[row.id])) for row in rows]


def _set_shares(session: Session, asset_id: str, tenants: Sequence[str]) -> None:
    session.execute(delete(ShareRow).where(ShareRow.asset_id == asset_id))
    session.add_all(ShareRow(tenant_name=name, asset_id=asset_id) for name in set(tenants))
