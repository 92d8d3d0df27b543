"""A circuit breaker: what has failed again and again is left alone for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

from orchestrator.errors import SourceDown


class Breaker:
    """Mutable, for many threads. After ``failures`` in a row nobody asks for ``cool_s``; then one
    may, and what becomes of that one decides for all."""

    def __init__(
        self,
        name: str,
        failures: int = 5,
        cool_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._most = failures
        self._cool_s = cool_s
        self._clock = clock
        self._failed = 0
        self._until_s = 0.0
        self._lock = Lock()

    def ask(self) -> None:
        """Raises SourceDown when it should be left alone."""
        with self._lock:
            if self._failed < self._most:
                return
            left_s = self._until_s - self._clock()
            if left_s > 0:
                raise SourceDown(f"{self._name} has failed {self._failed} times in a row", left_s)
            self._until_s = self._clock() + self._cool_s  # this one asks, and no other yet

    def answered(self) -> None:
        with self._lock:
            self._failed = 0

    def failed(self) -> None:
        with self._lock:
            self._failed += 1
            self._until_s = self._clock() + self._cool_s
