"""Work that one gateway does for all of them, once in a while; and leases of what one may do at a
time."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine, delete
from sqlalchemy.orm import Mapped, Session, mapped_column

from assets.sql.base import Base, alone


class ChoreRow(Base):
    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(primary_key=True)
    done_at_s: Mapped[float]


class PeriodicWork:
    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def claim(self, name: str, every_s: float) -> bool:
        """Whether it is due; then it is the caller's, and nobody else's for ``every_s``."""
        with Session(self._engine) as session, session.begin():
            alone(session, f"chore/{name}")
            row = session.get(ChoreRow, name)
            # Unless the clock was set back: then it is done rather than never.
            if row is not None and 0 <= self._now() - row.done_at_s < every_s:
                return False
            session.merge(ChoreRow(name=name, done_at_s=self._now()))
        return True

    def renew(self, name: str) -> None:
        """As if it were taken now, by who has it."""
        with Session(self._engine) as session, session.begin():
            session.merge(ChoreRow(name=name, done_at_s=self._now()))

    def end(self, name: str) -> None:
        """It may be taken again at once, and is not remembered."""
        with Session(self._engine) as session, session.begin():
            session.execute(delete(ChoreRow).where(ChoreRow.name == name))
