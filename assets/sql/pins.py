"""Assets that the operator pinned: node tiers do not evict them."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from assets.asset import Asset
from assets.content import ORIGINAL
from assets.errors import AssetNotFound, InvalidAsset
from assets.sql.base import Base
from assets.sql.blobs import BlobRefRow
from assets.sql.rows import AssetRow, asset_of

_IS_LIVE = AssetRow.deleted_at_s.is_(None)


class PinRow(Base):
    __tablename__ = "pins"

    asset_id: Mapped[str] = mapped_column(primary_key=True)
    pinned_at_s: Mapped[float]


class Pins:
    """A reference is an asset id or ``OWNER:NAME`` (the newest version)."""

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def add(self, reference: str) -> Asset:
        """Pin a ready asset. Raises AssetNotFound."""
        with Session(self._engine) as session, session.begin():
            asset = _find(session, reference)
            if session.get(PinRow, asset.id) is None:
                session.add(PinRow(asset_id=asset.id, pinned_at_s=self._now()))
            return asset

    def remove(self, reference: str) -> Asset:
        """Unpin an asset. Raises AssetNotFound, InvalidAsset: it is not pinned."""
        with Session(self._engine) as session, session.begin():
            asset = _find(session, reference)
            if session.get(PinRow, asset.id) is None:
                raise InvalidAsset("reference", f"{reference!r} is not pinned")
            session.execute(delete(PinRow).where(PinRow.asset_id == asset.id))
            return asset

    def list(self) -> list[Asset]:
        pinned = select(AssetRow).join(PinRow, PinRow.asset_id == AssetRow.id).where(_IS_LIVE)
        with Session(self._engine) as session:
            return [asset_of(row) for row in session.scalars(pinned.order_by(AssetRow.id))]

    def keys(self) -> frozenset[str]:
        """Content keys of live assets, without originals."""
        referred = (
            select(BlobRefRow.blob_key)
            .join(PinRow, PinRow.asset_id == BlobRefRow.asset_id)
            .join(AssetRow, AssetRow.id == PinRow.asset_id)
            .where(_IS_LIVE, ~BlobRefRow.blob_key.startswith(ORIGINAL))
        )
        with Session(self._engine) as session:
            return frozenset(session.scalars(referred))


def _find(session: Session, reference: str) -> Asset:
    owner, colon, name = reference.partition(":")
    query = select(AssetRow).where(_IS_LIVE, AssetRow.status == "ready")
    if colon:
        query = query.where(AssetRow.owner == owner, AssetRow.name == name)
    else:
        query = query.where(AssetRow.id == reference)
    row = session.scalars(query.order_by(AssetRow.version.desc()).limit(1)).first()
    if row is None:
        raise AssetNotFound(reference)
    return asset_of(row)
