"""Named leases in the database: periodic work that one gateway does for all."""

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
    """Leases, each held by one gateway at a time."""

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def claim(self, name: str, every_s: float) -> bool:
        """Claim ``name`` for ``every_s`` seconds, if it is free."""
        with Session(self._engine) as session, session.begin():
            alone(session, f"chore/{name}")
            row = session.get(PeriodicRow, name)
            # Also due after the clock was set back.
            if row is not None and 0 <= self._now() - row.done_at_s < every_s:
                return False
            session.merge(PeriodicRow(name=name, done_at_s=self._now()))
        return True

    def renew(self, name: str) -> None:
        with Session(self._engine) as session, session.begin():
            session.merge(PeriodicRow(name=name, done_at_s=self._now()))

    def end(self, name: str) -> None:
        with Session(self._engine) as session, session.begin():
            session.execute(delete(PeriodicRow).where(PeriodicRow.name == name))
