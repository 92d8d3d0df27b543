"""The :class:`~assets.library.records.AssetRecords` of an SQL database."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine, Row, case, delete, func, or_, select, update
from sqlalchemy.orm import Session

from assets.asset import Asset
from assets.errors import NameTaken, QuotaExceeded
from assets.ids import new_asset_id
from assets.library.records import Page, Query
from assets.sql.base import alone
from assets.sql.blobs import BlobRefRow, refer
from assets.sql.rows import FIELDS, AssetRow, ShareRow, asset_of, row_values
from assets.sql.search_index import keep_words, search_terms, with_all

_IS_LIVE = AssetRow.deleted_at_s.is_(None)
#: Deleted rows keep a number, and no more, once they are purged.
_SAYS_SOMETHING = or_(AssetRow.description != "", AssetRow.size_bytes > 0)
_REFERS = AssetRow.id.in_(select(BlobRefRow.asset_id))
#: To read from, without what it takes to write.
_ROWS = select(*(getattr(AssetRow, name) for name in FIELDS))
_BEST_FIRST = (case((AssetRow.status == "ready", 0), else_=1), AssetRow.version.desc())


class SqlAssetRecords:
    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def add(self, asset: Asset, *, new_version: bool = False, most: int | None = None) -> Asset:
        mine = AssetRow.tenant_id == asset.tenant_id
        named = (mine, AssetRow.name == asset.name)
        with Session(self._engine) as session, session.begin():
            alone(session, asset.tenant_id)
            if most is not None:
                held = session.scalar(select(func.count(AssetRow.id)).where(mine, _IS_LIVE))
                if (held or 0) >= most:
                    raise QuotaExceeded("assets", most)
            if not new_version and session.scalar(select(AssetRow.id).where(*named, _IS_LIVE)):
                raise NameTaken(asset.name)
            last = session.scalar(select(func.max(AssetRow.version)).where(*named))
            asset = replace(asset, version=(last or 0) + 1)
            values = row_values({name: getattr(asset, name) for name in FIELDS})
            session.add(AssetRow(**values, changed_at_s=self._now()))
            keep_words(session, asset)
            refer(session, asset.id, asset.blobs, self._now())
            _share(session, asset.id, asset.shared_with)
        return asset

    def get(self, asset_id: str) -> Asset | None:
        return self._best(AssetRow.id == asset_id)

    def find(
        self, tenant_id: str, name: str, version: int | None = None, member_id: str | None = None
    ) -> Asset | None:
        named = (AssetRow.tenant_id == tenant_id, AssetRow.name == name, _IS_LIVE)
        return self._best(*named, *_exactly(version), *_seen_by(member_id))

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
            *_exactly(version),
        )

    def _best(self, *conditions: Any) -> Asset | None:
        wanted = _ROWS.where(*conditions).order_by(*_BEST_FIRST).limit(1)
        with Session(self._engine) as session:
            found = _assets(session, session.execute(wanted).all())
            return found[0] if found else None

    def update(
        self, asset_id: str, changes: Mapping[str, Any], *, expect: Sequence[str] = ()
    ) -> Asset | None:
        condition = [AssetRow.id == asset_id]
        if expect:
            condition.append(AssetRow.status.in_(expect))
        values = {**row_values(changes), "changed_at_s": self._now()}
        with Session(self._engine) as session, session.begin():
            # One statement: the status is compared where it is changed, on every database.
            result = session.execute(update(AssetRow).where(*condition).values(**values))
            if result.rowcount != 1:  # type: ignore[attr-defined]
                return None
            if "shared_with" in changes:
                _share(session, asset_id, changes["shared_with"])
            row = session.get_one(AssetRow, asset_id)
            (asset,) = _assets(session, [row])
            if {"parts", "original"} & changes.keys():
                refer(session, asset_id, asset.blobs, self._now())
            if {"data", "description", "deleted_at_s"} & changes.keys():
                keep_words(session, asset)
        return asset

    def purge(self, asset_id: str) -> bool:
        with Session(self._engine) as session, session.begin():
            row = session.get(AssetRow, asset_id)
            if row is None or row.deleted_at_s is None:
                return False
            alone(session, row.tenant_id)
            named = (AssetRow.tenant_id == row.tenant_id, AssetRow.name == row.name)
            later = select(AssetRow.id).where(*named, AssetRow.version > row.version).limit(1)
            was_inspected = bool(row.parts or row.report)
            _share(session, asset_id, ())
            refer(session, asset_id, (), self._now())
            if was_inspected and session.scalar(later) is None:
                # Its number must not be given again: the row stays, and nothing of what it said.
                row.parts, row.report, row.data, row.original = {}, {"purged": True}, {}, None
                row.description, row.status_details, row.size_bytes = "", "", 0
                row.changed_at_s = self._now()
                session.flush()
                lower = (*named, AssetRow.version < row.version, ~_IS_LIVE)
                session.execute(delete(AssetRow).where(*lower, ~_REFERS, ~_SAYS_SOMETHING))
            else:
                session.delete(row)
        return True

    def rename(self, asset_id: str, name: str) -> Asset | None:
        with Session(self._engine) as session, session.begin():
            row = session.get(AssetRow, asset_id)
            if row is None or row.deleted_at_s is not None:
                return None
            alone(session, row.tenant_id)
            session.refresh(row)
            if row.name != name:
                of_tenant = (AssetRow.tenant_id == row.tenant_id,)
                taken = (*of_tenant, AssetRow.name == name)
                if session.scalar(select(AssetRow.id).where(*taken, _IS_LIVE)):
                    raise NameTaken(name)
                # Numbers that a name has had are not used again, on either side.
                used = session.scalar(select(func.max(AssetRow.version)).where(*taken)) or 0
                series = (*of_tenant, AssetRow.name == row.name, _IS_LIVE)
                versions = session.scalars(select(AssetRow).where(*series)).all()
                last = max(versions, key=lambda version: version.version)
                gone = replace(
                    asset_of(last), id=new_asset_id(self._now()), status="deleted", parts={},
                    original=None, status_details=f"renamed to {name}",
                    deleted_at_s=self._now(), data={},
                )  # fmt: skip
                session.flush()
                for version in versions:
                    version.name, version.version = name, version.version + used
                    version.changed_at_s = self._now()
                    keep_words(session, asset_of(version))
                session.flush()
                kept = row_values({name: getattr(gone, name) for name in FIELDS})
                session.add(AssetRow(**kept, changed_at_s=self._now()))
                session.flush()
            (asset,) = _assets(session, [row])
        return asset

    def used(self, asset_ids: Sequence[str]) -> None:
        values = {"uses": AssetRow.uses + 1, "last_used_at_s": self._now()}
        with Session(self._engine) as session, session.begin():
            session.execute(update(AssetRow).where(AssetRow.id.in_(asset_ids)).values(**values))

    def list(self, query: Query) -> Page:
        """Raises InvalidAsset: more words and tags than a search may have."""
        terms = search_terms(query.text, query.tags)
        if query.text.strip() and not any(word for word in terms if not word.startswith("#")):
            return Page([], 0, has_more=False)  # nothing in it is a word
        conditions = _conditions(query)
        if terms:
            conditions.append(AssetRow.id.in_(with_all(terms, query.tenant_id)))
        # One statement: what is found is looked for once, counted, and cut to a page.
        found = select(AssetRow.id).where(*conditions).cte("found")
        page = select(found.c.id).where(found.c.id > query.after).order_by(found.c.id)
        page = page.limit(query.limit + 1).offset(query.offset)
        total = select(func.count()).select_from(found).scalar_subquery()
        with Session(self._engine) as session:
            wanted = _ROWS.where(AssetRow.id.in_(page)).order_by(AssetRow.id)
            rows = session.execute(wanted.add_columns(total.label("total"))).all()
            count = rows[0].total if rows else session.scalar(select(total)) or 0
            assets = _assets(session, rows)
        return Page(assets[: query.limit], count, has_more=len(assets) > query.limit)

    def previews(self) -> set[str]:
        kept = or_(_IS_LIVE, _REFERS)
        wanted = select(AssetRow.data["preview"].as_string()).where(kept)
        with Session(self._engine) as session:
            return {key for key in session.scalars(wanted) if key}

    def referred(self) -> Mapping[str, Sequence[str]]:
        wanted = (
            select(BlobRefRow.blob_key, BlobRefRow.asset_id)
            .join(AssetRow, AssetRow.id == BlobRefRow.asset_id)
            .where(_IS_LIVE, AssetRow.status == "ready")
        )
        found: dict[str, list[str]] = defaultdict(list)
        with Session(self._engine) as session:
            for key, asset_id in session.execute(wanted):
                found[key].append(asset_id)
        return found

    def miskeyed(self) -> Sequence[Asset]:
        salted = select(BlobRefRow.asset_id).where(BlobRefRow.blob_key.startswith("t"))
        plain = select(BlobRefRow.asset_id).where(BlobRefRow.blob_key.startswith("p"))
        is_public = AssetRow.visibility == "public"
        wrong = or_(is_public & AssetRow.id.in_(salted), ~is_public & AssetRow.id.in_(plain))
        miskeyed = self._all(_IS_LIVE, AssetRow.status == "ready", wrong)
        said = self._all(
            _IS_LIVE, AssetRow.status == "ready", AssetRow.kind == "checkpoint",
            AssetRow.report["prediction_type"]["value"].as_string()
            != AssetRow.data["prediction_type"].as_string(),
        )  # fmt: skip
        return [*miskeyed, *said]

    def forgotten(self, before_s: float) -> Sequence[Asset]:
        return self._all(AssetRow.deleted_at_s < before_s, or_(_REFERS, _SAYS_SOMETHING))

    def restorable(self, tenant_id: str) -> Sequence[Asset]:
        found = self._all(AssetRow.tenant_id == tenant_id, ~_IS_LIVE, _REFERS)
        return sorted(found, key=lambda asset: asset.deleted_at_s or 0.0)

    def stale(self, status: str, before_s: float) -> Sequence[Asset]:
        return self._all(AssetRow.status == status, AssetRow.changed_at_s < before_s)

    def expired(self, now_s: float) -> Sequence[Asset]:
        return self._all(AssetRow.expires_at_s <= now_s, _IS_LIVE)

    def _all(self, *conditions: Any) -> Sequence[Asset]:
        with Session(self._engine) as session:
            return _assets(session, session.execute(_ROWS.where(*conditions)).all())


def _seen_by(member_id: str | None) -> tuple[Any, ...]:
    """Of a tenant's assets, those that are not private to others; None sees them all."""
    if member_id is None:
        return ()
    return (or_(AssetRow.visibility != "private", AssetRow.created_by == member_id),)


def _conditions(query: Query) -> list[Any]:
    """Of a listing, but for the words."""
    conditions: list[Any] = [_IS_LIVE]
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
    conditions += _seen_by(query.member_id)
    if query.shared_with is not None:
        shared = select(ShareRow.asset_id).where(ShareRow.tenant_name == query.shared_with)
        conditions += [AssetRow.visibility == "shared", AssetRow.id.in_(shared)]
    if query.kinds:
        conditions.append(AssetRow.kind.in_(query.kinds))
    if query.ids:
        conditions.append(AssetRow.id.in_(query.ids))
    return conditions


def _exactly(version: int | None) -> tuple[Any, ...]:
    return () if version is None else (AssetRow.version == version,)


def _assets(session: Session, rows: Sequence[AssetRow | Row[Any]]) -> list[Asset]:
    shared: dict[str, list[str]] = defaultdict(list)
    ids = [row.id for row in rows if row.visibility == "shared"]
    if ids:
        wanted = select(ShareRow).where(ShareRow.asset_id.in_(ids)).order_by(ShareRow.tenant_name)
        for share in session.scalars(wanted):
            shared[share.asset_id].append(share.tenant_name)
    return [asset_of(row, tuple(shared[row.id])) for row in rows]


def _share(session: Session, asset_id: str, tenants: Sequence[str]) -> None:
    session.execute(delete(ShareRow).where(ShareRow.asset_id == asset_id))
    session.add_all(ShareRow(tenant_name=name, asset_id=asset_id) for name in set(tenants))
