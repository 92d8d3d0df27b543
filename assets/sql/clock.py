"""The one clock of all who use a database: what one machine writes another compares."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

from sqlalchemy import Engine, text

#: How long this machine's own clock is trusted to run as fast as the database's.
_FRESH_S = 60.0


def clock_of(engine: Engine) -> Callable[[], float]:
    """Seconds of the epoch. A PostgreSQL server's, so that a machine whose clock is wrong takes
    no other's claim for one that has run out; who uses an SQLite shares a machine with it."""
    if engine.dialect.name != "postgresql":
        return time.time
    return _ServerClock(engine)


class _ServerClock:
    """Asks the server once a minute, and counts from there."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = Lock()
        self._at_s = -_FRESH_S
        self._ahead_s = 0.0

    def __call__(self) -> float:
        now = time.monotonic()
        with self._lock:
            if now - self._at_s >= _FRESH_S:
                with self._engine.connect() as connection:
                    asked = text("SELECT extract(epoch FROM clock_timestamp())")
                    server_s = float(connection.scalar(asked))
                self._at_s = now = time.monotonic()
                self._ahead_s = server_s - now
            return now + self._ahead_s
