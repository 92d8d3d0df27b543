"""The clock of a database: timestamps from several machines are comparable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Lock

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

log = logging.getLogger(__name__)

#: Then the offset is measured again.
_FRESH_S = 60.0


def clock_of(engine: Engine) -> Callable[[], float]:
    """Return seconds since the epoch by PostgreSQL's clock: a wrong local one would expire other
    machines' claims. SQLite's single machine uses its own."""
    if engine.dialect.name != "postgresql":
        return time.time
    return _ServerClock(engine)


class _ServerClock:
    """The monotonic clock plus an offset, measured on its own connection: the caller may hold the
    pool's last one and locks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = create_engine(engine.url, poolclass=NullPool)
        self._measuring = Lock()
        self._offset_s = self._measure()
        self._due_s = time.monotonic() + _FRESH_S

    def _measure(self) -> float:
        query = text("SELECT extract(epoch FROM clock_timestamp())")
        with self._engine.connect() as connection:
            before = time.monotonic()
            server_s = float(connection.scalar(query))
        return server_s - (before + time.monotonic()) / 2

    def __call__(self) -> float:
        if time.monotonic() >= self._due_s and self._measuring.acquire(blocking=False):
            try:
                self._due_s = time.monotonic() + _FRESH_S
                self._offset_s = self._measure()
            except SQLAlchemyError:
                log.warning("the database's clock could not be read; the last offset is still used")
            finally:
                self._measuring.release()
        return time.monotonic() + self._offset_s
