"""Which assets replicas die of. Pure; the time is an argument.

A replica that dies takes every asset of the request that it was drawing under suspicion,
except those that have been drawn well before. Twice is enough: until the quarantine is over
the asset is refused, so that one poisonous file does not take one replica after another.
"""

from __future__ import annotations

from collections.abc import Iterable

from cachetools import LRUCache

CRASHES = 2
HELD_S = 3600.0
#: Assets remembered; the least recently seen are forgotten first.
_REMEMBERED = 100_000


class Suspicion:
    """Mutable: what has been drawn well, crashes by content key, ends of quarantines."""

    def __init__(self, crashes: int = CRASHES, held_s: float = HELD_S) -> None:
        self._limit = crashes
        self._held_s = held_s
        self._proven: LRUCache[str, bool] = LRUCache(_REMEMBERED)
        self._crashes: LRUCache[str, int] = LRUCache(_REMEMBERED)
        self._until_s: dict[str, float] = {}

    def drew(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._proven[key] = True
            self._crashes.pop(key, None)

    def crashed(self, keys: Iterable[str], now_s: float) -> None:
        for key in keys:
            if key in self._proven:
                continue
            count = self._crashes.get(key, 0) + 1
            self._crashes[key] = count
            if count >= self._limit:
                self._until_s[key] = now_s + self._held_s

    def held(self, now_s: float) -> dict[str, float]:
        """The quarantined content keys, and for how many seconds yet. One whose time is over
        is as good as new."""
        for key in [key for key, until in self._until_s.items() if until <= now_s]:
            del self._until_s[key]
            self._crashes.pop(key, None)
        return {key: until - now_s for key, until in self._until_s.items()}
