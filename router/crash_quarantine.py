"""Which assets replicas die of. Pure; the time is an argument.

A replica that dies takes every asset of the request that it was drawing under suspicion,
except those that have been drawn well before. Twice is enough: until the quarantine is over
the asset is refused to that tenant, so that one poisonous file does not take one replica after
another. To that tenant only: it may have been another file of the same request, and nobody
shall be able to have a public asset refused to everybody.
"""

from __future__ import annotations

from collections.abc import Iterable

from cachetools import LRUCache

CRASHES = 2
HELD_S = 3600.0
#: Assets remembered; the least recently seen are forgotten first.
_REMEMBERED = 100_000

#: Whose request it was, and the asset's content key.
_Case = tuple[str, str]


class CrashQuarantine:
    """Mutable: what has been drawn well; crashes and when the last was; ends of quarantines."""

    def __init__(self, crashes: int = CRASHES, held_s: float = HELD_S) -> None:
        self._limit = crashes
        self._held_s = held_s
        self._proven: LRUCache[str, bool] = LRUCache(_REMEMBERED)
        self._crashes: LRUCache[_Case, tuple[int, float]] = LRUCache(_REMEMBERED)
        self._until_s: dict[_Case, float] = {}

    def succeeded(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._proven[key] = True

    def crashed(self, tenant_id: str, keys: Iterable[str], now_s: float) -> None:
        for key in keys:
            if key in self._proven:
                continue
            count, last_s = self._crashes.get((tenant_id, key), (0, now_s))
            count = count + 1 if now_s - last_s <= self._held_s else 1
            self._crashes[tenant_id, key] = (count, now_s)
            if count >= self._limit:
                self._until_s[tenant_id, key] = now_s + self._held_s

    def held(self, tenant_id: str, keys: Iterable[str], now_s: float) -> dict[str, float]:
        """Those of the keys that are refused to the tenant, and for how many seconds yet."""
        self._forget(now_s)
        cases = {key: self._until_s.get((tenant_id, key)) for key in keys}
        return {key: until - now_s for key, until in cases.items() if until is not None}

    def count(self, now_s: float) -> int:
        """How many assets are in quarantine."""
        self._forget(now_s)
        return len({key for _, key in self._until_s})

    def _forget(self, now_s: float) -> None:
        """One whose time is over is as good as new."""
        for case in [c for c, until in self._until_s.items() if until <= now_s]:
            del self._until_s[case]
            self._crashes.pop(case, None)
