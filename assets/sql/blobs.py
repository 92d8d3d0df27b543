"""The tables of blobs and of what refers to them; an SQL implementation of
:class:`~assets.library.references.BlobRecords`."""

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
from assets.sql.base import Base
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


class KeptRow(Base):
    __tablename__ = "kept_bytes"
    __table_args__ = (Index("kept_bytes_tenant", "tenant_id"),)

    key: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)


def refer(session: Session, asset_id: str, blobs: Iterable[Blob], now_s: float) -> None:
    """Make ``asset_id`` refer to exactly these blobs, within the session's transaction."""
    session.execute(delete(BlobRefRow).where(BlobRefRow.asset_id == asset_id))
    for blob in {blob.key: blob for blob in blobs}.values():
        if session.get(BlobRow, blob.key) is None:
            session.add(BlobRow(key=blob.key, size_bytes=blob.size_bytes, claimed_at_s=now_s))
        session.add(BlobRefRow(blob_key=blob.key, asset_id=asset_id))


_IS_LIVE = AssetRow.deleted_at_s.is_(None)
#: What an asset was sent lies in the store: it is on its way, waits, or broke on our side.
_UPLOADED = ("ready_to_upload", "uploading", "uploaded", "error")
_PIECE = 500


def _pieces(keys: Iterable[str]) -> Iterable[list[str]]:
    """Databases bind only so many values."""
    whole = list(keys)
    return (whole[start : start + _PIECE] for start in range(0, len(whole), _PIECE))


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
                if session.execute(claimed).rowcount:  # type: ignore[attr-defined]
                    return True
                there = session.get(BlobRow, blob.key)
                if there is not None:  # by now: somebody's claim, or a collector's
                    return there.doomed_at_s is None
                row = BlobRow(key=blob.key, size_bytes=blob.size_bytes, claimed_at_s=self._now())
                session.add(row)
            return True
        except IntegrityError:  # another was first, and claimed it just now
            return self.claim(blob)

    def live(self, keys: Collection[str]) -> set[str]:
        found: set[str] = set()
        with Session(self._engine) as session:
            for some in _pieces(keys):
                wanted = select(BlobRefRow.blob_key).join(
                    AssetRow, AssetRow.id == BlobRefRow.asset_id
                )
                found.update(session.scalars(wanted.where(BlobRefRow.blob_key.in_(some), _IS_LIVE)))
        return found

    def known(self, keys: Collection[str]) -> set[str]:
        found: set[str] = set()
        with Session(self._engine) as session:
            for some in _pieces(keys):
                found.update(session.scalars(select(BlobRow.key).where(BlobRow.key.in_(some))))
        return found

    def stored_bytes(self, tenant_id: str, *, restorable: bool = True) -> int:
        mine = AssetRow.tenant_id == tenant_id
        refer = (mine,) if restorable else (mine, _IS_LIVE)
        held = (
            select(BlobRefRow.blob_key)
            .join(AssetRow, AssetRow.id == BlobRefRow.asset_id)
            .where(*refer)
        )
        blobs = select(func.sum(BlobRow.size_bytes)).where(BlobRow.key.in_(held))
        refers = exists().where(BlobRefRow.asset_id == AssetRow.id)
        waits = (AssetRow.status.in_(_UPLOADED), ~refers)
        uploads = select(func.sum(AssetRow.size_bytes)).where(mine, _IS_LIVE, *waits)
        others = select(func.sum(KeptRow.size_bytes)).where(KeptRow.tenant_id == tenant_id)
        with Session(self._engine) as session:
            return sum(int(session.scalar(part) or 0) for part in (blobs, uploads, others))

    def keep(self, key: str, tenant_id: str, size_bytes: int) -> None:
        with Session(self._engine) as session, session.begin():
            session.merge(KeptRow(key=key, tenant_id=tenant_id, size_bytes=size_bytes))

    def unkeep(self, keys: Collection[str]) -> None:
        for some in _pieces(keys):
            with Session(self._engine) as session, session.begin():
                session.execute(delete(KeptRow).where(KeptRow.key.in_(some)))

    def garbage(self, before_s: float) -> Sequence[str]:
        with Session(self._engine) as session:
            return list(session.scalars(select(BlobRow.key).where(*_unwanted(before_s))))

    def mark_for_deletion(self, key: str, before_s: float) -> bool:
        taken = (
            update(BlobRow)
            .where(BlobRow.key == key, *_unwanted(before_s))
            .where(or_(BlobRow.doomed_at_s.is_(None), BlobRow.doomed_at_s < before_s))
            .values(doomed_at_s=self._now())
        )
        with Session(self._engine) as session, session.begin():
            return bool(session.execute(taken).rowcount)  # type: ignore[attr-defined]

    def forget(self, key: str) -> None:
        doomed = BlobRow.doomed_at_s.is_not(None)
        with Session(self._engine) as session, session.begin():
            session.execute(delete(BlobRow).where(BlobRow.key == key, doomed))


def _unwanted(before_s: float) -> tuple[ColumnElement[bool], ...]:
    referred = exists().where(BlobRefRow.blob_key == BlobRow.key)
    return (~referred, BlobRow.claimed_at_s < before_s)
