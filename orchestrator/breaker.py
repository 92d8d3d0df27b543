"""A circuit breaker: stop calling a service that keeps failing."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

from orchestrator.errors import SourceDown


class Breaker:
    """After ``failures`` in a row, rejects calls for ``cool_s``, then lets one trial call decide.
    Thread-safe."""

    def __init__(
        self,
        name: str,
        failures: int = 5,
        cool_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._max_failures = failures
        self._cool_s = cool_s
        self._clock = clock
        self._failures = 0
        self._open_until_s = 0.0
        self._lock = Lock()

    def ask(self) -> None:
        """Raise SourceDown while the breaker is open."""
        with self._lock:
            if self._failures < self._max_failures:
                return
            left_s = self._open_until_s - self._clock()
            if left_s > 0:
                raise SourceDown(f"{self._name} has failed {self._failures} times in a row", left_s)
            self._open_until_s = self._clock() + self._cool_s  # one trial call only

    def answered(self) -> None:
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            self._open_until_s = self._clock() + self._cool_s
