"""The one clock of all who use a database: what one machine writes another compares."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Lock

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

log = logging.getLogger(__name__)

#: How long this machine's own clock is trusted to run as fast as the database's.
_FRESH_S = 60.0


def clock_of(engine: Engine) -> Callable[[], float]:
    """Seconds of the epoch. A PostgreSQL server's, so that a machine whose clock is wrong takes
    no other's claim for one that has run out; who uses an SQLite shares a machine with it."""
    if engine.dialect.name != "postgresql":
        return time.time
    return _ServerClock(engine)


class _ServerClock:
    """Asks the server now and then, and counts from there. On a connection of its own: who
    asks for the time may hold the last one of the engine's, and what others wait for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = create_engine(engine.url, poolclass=NullPool)
        self._asking = Lock()
        self._ahead_s = self._ask()
        self._due_s = time.monotonic() + _FRESH_S

    def _ask(self) -> float:
        """How far the server's clock is ahead of this process's, which is never set."""
        asked = text("SELECT extract(epoch FROM clock_timestamp())")
        with self._engine.connect() as connection:
            before = time.monotonic()
            server_s = float(connection.scalar(asked))
        return server_s - (before + time.monotonic()) / 2

    def __call__(self) -> float:
        if time.monotonic() >= self._due_s and self._asking.acquire(blocking=False):
            try:
                self._due_s = time.monotonic() + _FRESH_S
                self._ahead_s = self._ask()
            except SQLAlchemyError:
                log.warning("the database does not tell the time; it is counted on")
            finally:
                self._asking.release()
        return time.monotonic() + self._ahead_s
