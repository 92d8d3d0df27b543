"""How much each checkpoint is asked for: a moving average that fades."""

from __future__ import annotations

import math

from cachetools import LRUCache


class Popularity:
    """Requests a second by key; what happened ``fade_s`` ago counts a third (1/e)."""

    def __init__(self, fade_s: float) -> None:
        self.fade_s = fade_s
        self._seen: LRUCache[str, tuple[float, float]] = LRUCache(10_000)

    def asked(self, key: str, now_s: float) -> None:
        self._seen[key] = (self._count(key, now_s) + 1.0, now_s)

    def _count(self, key: str, now_s: float) -> float:
        count, then_s = self._seen.get(key, (0.0, now_s))
        return count * math.exp((then_s - now_s) / self.fade_s)

    def rate(self, key: str, now_s: float) -> float:
        return self._count(key, now_s) / self.fade_s

    def most(self, count: int, now_s: float) -> list[str]:
        """The keys most asked for, of those asked for more than twice lately."""
        counts = {key: self._count(key, now_s) for key in self._seen}
        wanted = sorted((key for key, n in counts.items() if n > 2), key=lambda k: -counts[k])
        return wanted[:count]

    def within(self, key: str, horizon_s: float, now_s: float) -> float:
        """The probability that it is asked for within the horizon."""
        return 1.0 - math.exp(-self.rate(key, now_s) * horizon_s)
