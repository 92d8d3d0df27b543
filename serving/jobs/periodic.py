"""Periodic work that one gateway does for all, and named leases, both in the database."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine, delete
from sqlalchemy.orm import Mapped, Session, mapped_column

from assets.sql.base import Base, alone


class PeriodicRow(Base):
    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(primary_key=True)
    done_at_s: Mapped[float]


class PeriodicWork:
    """Named leases, claimed by one gateway at a time."""

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def claim(self, name: str, every_s: float) -> bool:
        """Claim ``name`` for ``every_s`` seconds; return whether the caller got it."""
        with Session(self._engine) as session, session.begin():
            alone(session, f"chore/{name}")
            row = session.get(PeriodicRow, name)
            # A time in the future means that the clock was set back: the work is due then, too.
            if row is not None and 0 <= self._now() - row.done_at_s < every_s:
                return False
            session.merge(PeriodicRow(name=name, done_at_s=self._now()))
        return True

    def renew(self, name: str) -> None:
        """Extend the holder's claim: it starts again now."""
        with Session(self._engine) as session, session.begin():
            session.merge(PeriodicRow(name=name, done_at_s=self._now()))

    def end(self, name: str) -> None:
        """Release the claim, so that it can be taken again immediately."""
        with Session(self._engine) as session, session.begin():
            session.execute(delete(PeriodicRow).where(PeriodicRow.name == name))
