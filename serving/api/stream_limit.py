"""A limit on open event streams: following needs no key, only the id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import Refused

#: Of one job or request, in one process.
MAX_FOLLOWERS = 100
_RETRY_S = 5.0


class StreamLimit:
    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def check(self, key: str) -> None:
        """Raises Refused: too many followers."""
        if self._open[key] >= MAX_FOLLOWERS:
            raise Refused(429, f"{MAX_FOLLOWERS} clients follow it here already", _RETRY_S)

    @contextmanager
    def following(self, key: str) -> Iterator[None]:
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]
