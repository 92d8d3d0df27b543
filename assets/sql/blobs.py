"""The tables of blobs and references; :class:`~assets.library.references.BlobRecords` in SQL."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Engine,
    Index,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from assets.content import Blob
from assets.sql.base import Base, rows_changed
from assets.sql.rows import AssetRow


class BlobRow(Base):
    __tablename__ = "blobs"

    key: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    claimed_at_s: Mapped[float]
    doomed_at_s: Mapped[float | None]


class BlobRefRow(Base):
    __tablename__ = "blob_refs"

    blob_key: Mapped[str] = mapped_column(primary_key=True)
    asset_id: Mapped[str] = mapped_column(primary_key=True, index=True)


class CountedObjectRow(Base):
    """In a tenant's storage, but not an asset's file."""

    __tablename__ = "kept_bytes"
    __table_args__ = (Index("kept_bytes_tenant", "tenant_id"),)

    key: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)


def refer(session: Session, asset_id: str, blobs: Iterable[Blob], now_s: float) -> None:
    """Make ``asset_id`` refer to exactly these blobs."""
    session.execute(delete(BlobRefRow).where(BlobRefRow.asset_id == asset_id))
    for blob in {blob.key: blob for blob in blobs}.values():
        if session.get(BlobRow, blob.key) is None:
            session.add(BlobRow(key=blob.key, size_bytes=blob.size_bytes, claimed_at_s=now_s))
        session.add(BlobRefRow(blob_key=blob.key, asset_id=asset_id))


_IS_LIVE = AssetRow.deleted_at_s.is_(None)
#: The store may hold the uploaded file.
_UPLOADED = ("ready_to_upload", "uploading", "uploaded", "error")
_CHUNK = 500


def _chunks(keys: Iterable[str]) -> Iterable[list[str]]:
    """Databases limit the number of bound values."""
    ordered = list(keys)
    return (ordered[start : start + _CHUNK] for start in range(0, len(ordered), _CHUNK))


class SqlBlobRecords:
    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def claim(self, blob: Blob) -> bool:
        claimed = (
            update(BlobRow)
            .where(BlobRow.key == blob.key, BlobRow.doomed_at_s.is_(None))
            .values(claimed_at_s=self._now())
        )
        try:
            with Session(self._engine) as session, session.begin():
                if rows_changed(session.execute(claimed)):
                    return True
                existing = session.get(BlobRow, blob.key)
                if existing is not None:  # marked, or inserted since
                    return existing.doomed_at_s is None
                row = BlobRow(key=blob.key, size_bytes=blob.size_bytes, claimed_at_s=self._now())
                session.add(row)
            return True
        except IntegrityError:  # a concurrent claim inserted it
            return self.claim(blob)

    def live(self, keys: Collection[str]) -> set[str]:
        live: set[str] = set()
        with Session(self._engine) as session:
            for chunk in _chunks(keys):
                referred = select(BlobRefRow.blob_key).join(
                    AssetRow, AssetRow.id == BlobRefRow.asset_id
                )
                live.update(
                    session.scalars(referred.where(BlobRefRow.blob_key.in_(chunk), _IS_LIVE))
                )
        return live

    def known(self, keys: Collection[str]) -> set[str]:
        known: set[str] = set()
        with Session(self._engine) as session:
            for chunk in _chunks(keys):
                known.update(session.scalars(select(BlobRow.key).where(BlobRow.key.in_(chunk))))
        return known

    def stored_bytes(self, tenant_id: str, *, restorable: bool = True) -> int:
        of_tenant = AssetRow.tenant_id == tenant_id
        counted = (of_tenant,) if restorable else (of_tenant, _IS_LIVE)
        referred = (
            select(BlobRefRow.blob_key)
            .join(AssetRow, AssetRow.id == BlobRefRow.asset_id)
            .where(*counted)
        )
        blobs = select(func.sum(BlobRow.size_bytes)).where(BlobRow.key.in_(referred))
        has_blobs = exists().where(BlobRefRow.asset_id == AssetRow.id)
        is_upload = (AssetRow.status.in_(_UPLOADED), ~has_blobs)
        uploads = select(func.sum(AssetRow.size_bytes)).where(of_tenant, _IS_LIVE, *is_upload)
        kept = select(func.sum(CountedObjectRow.size_bytes)).where(
            CountedObjectRow.tenant_id == tenant_id
        )
        with Session(self._engine) as session:
            return sum(int(session.scalar(query) or 0) for query in (blobs, uploads, kept))

    def keep(self, key: str, tenant_id: str, size_bytes: int) -> None:
        with Session(self._engine) as session, session.begin():
            session.merge(CountedObjectRow(key=key, tenant_id=tenant_id, size_bytes=size_bytes))

    def unkeep(self, keys: Collection[str]) -> None:
        for chunk in _chunks(keys):
            with Session(self._engine) as session, session.begin():
                session.execute(delete(CountedObjectRow).where(CountedObjectRow.key.in_(chunk)))

    def garbage(self, before_s: float) -> Sequence[str]:
        with Session(self._engine) as session:
            return list(session.scalars(select(BlobRow.key).where(*_garbage_conditions(before_s))))

    def mark_for_deletion(self, key: str, before_s: float) -> bool:
        marked = (
            update(BlobRow)
            .where(BlobRow.key == key, *_garbage_conditions(before_s))
            .where(or_(BlobRow.doomed_at_s.is_(None), BlobRow.doomed_at_s < before_s))
            .values(doomed_at_s=self._now())
        )
        with Session(self._engine) as session, session.begin():
            return bool(rows_changed(session.execute(marked)))

    def forget(self, key: str) -> None:
        is_marked = BlobRow.doomed_at_s.is_not(None)
        with Session(self._engine) as session, session.begin():
            session.execute(delete(BlobRow).where(BlobRow.key == key, is_marked))


def _garbage_conditions(before_s: float) -> tuple[ColumnElement[bool], ...]:
    is_referred = exists().where(BlobRefRow.blob_key == BlobRow.key)
    return (~is_referred, BlobRow.claimed_at_s < before_s)
