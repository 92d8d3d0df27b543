"""The exponentially fading request rate of each asset."""

from __future__ import annotations

import math

from cachetools import LRUCache


class Popularity:
    """Requests per second by key. Mutable; a request ``fade_s`` ago counts 1/e."""

    def __init__(self, fade_s: float) -> None:
        self.fade_s = fade_s
        #: key → (faded count, time of the last request)
        self._counts: LRUCache[str, tuple[float, float]] = LRUCache(10_000)

    def record(self, key: str, now_s: float) -> None:
        self._counts[key] = (self._count(key, now_s) + 1.0, now_s)

    def _count(self, key: str, now_s: float) -> float:
        count, last_s = self._counts.get(key, (0.0, now_s))
        return count * math.exp((last_s - now_s) / self.fade_s)

    def rate(self, key: str, now_s: float) -> float:
        return self._count(key, now_s) / self.fade_s

    def most(self, count: int, now_s: float) -> list[str]:
        """Return the most requested keys, of those with more than two recent requests."""
        counts = {key: self._count(key, now_s) for key in self._counts}
        popular = sorted((key for key, n in counts.items() if n > 2), key=lambda k: -counts[k])
        return popular[:count]

    def within(self, key: str, horizon_s: float, now_s: float) -> float:
        return 1.0 - math.exp(-self.rate(key, now_s) * horizon_s)
