"""The outbox: one row per job that ended, written in the transaction that ends it.

Readers, such as the watchers of every gateway, look for rows after the last one they have seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import BigInteger, Engine, Index, Integer, delete, func, insert, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from assets.sql.base import Base

#: Rows that a reader looks at again: a transaction may commit after one with a higher number.
_OVERLAP = 64
_PAGE = 1000


class OutboxRow(Base):
    __tablename__ = "outbox"
    #: Numbers are never used again, also when the table is empty.
    __table_args__ = (Index("outbox_at", "at_s"), {"sqlite_autoincrement": True})

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    job_id: Mapped[str]
    tenant_id: Mapped[str]
    #: ``completed``, ``failed`` or ``cancelled``.
    status: Mapped[str]
    at_s: Mapped[float]


class EndedJob(NamedTuple):
    number: int
    job_id: str
    status: str


class Outbox:
    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def add_in(self, session: Session, job_id: str, tenant_id: str, status: str) -> None:
        """Add a row in the transaction that ends the job."""
        row = {"job_id": job_id, "tenant_id": tenant_id, "status": status, "at_s": self._now()}
        session.execute(insert(OutboxRow).values(**row))

    def last(self) -> int:
        with Session(self._engine) as session:
            return session.scalar(select(func.max(OutboxRow.number))) or 0

    def after(self, number: int) -> list[EndedJob]:
        """Return the rows after ``number``, and some before it once more."""
        newer = OutboxRow.number > number - _OVERLAP
        query = select(OutboxRow.number, OutboxRow.job_id, OutboxRow.status).where(newer)
        with Session(self._engine) as session:
            rows = session.execute(query.order_by(OutboxRow.number).limit(_PAGE))
            return [EndedJob(*row) for row in rows]

    def forget(self, older_than_s: float) -> None:
        """Delete rows that every reader has seen long ago."""
        with Session(self._engine) as session, session.begin():
            old = OutboxRow.at_s < self._now() - older_than_s
            session.execute(delete(OutboxRow).where(old))
