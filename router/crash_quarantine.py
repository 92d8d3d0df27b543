"""The quarantine of assets that crash replicas.

When a replica dies, each asset of its request that never completed a generation is suspected; at
the second crash it is refused to that tenant. Not to others: another file may be the cause, and a
public asset must stay available.
"""

from __future__ import annotations

from collections.abc import Iterable

from cachetools import LRUCache

CRASHES = 2
HELD_S = 3600.0
_MAX_TRACKED = 100_000

#: Tenant of the crashed request, content key.
_Case = tuple[str, str]


class CrashQuarantine:
    """Proven and quarantined assets. Mutable."""

    def __init__(self, crashes: int = CRASHES, held_s: float = HELD_S) -> None:
        self._max_crashes = crashes
        self._held_s = held_s
        self._proven: LRUCache[str, bool] = LRUCache(_MAX_TRACKED)
        self._crashes: LRUCache[_Case, tuple[int, float]] = LRUCache(_MAX_TRACKED)
        self._until_s: dict[_Case, float] = {}

    def succeeded(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._proven[key] = True

    def crashed(self, tenant_id: str, keys: Iterable[str], now_s: float) -> None:
        """Record a replica's death during a generation with these assets."""
        for key in keys:
            if key in self._proven:
                continue
            count, last_s = self._crashes.get((tenant_id, key), (0, now_s))
            count = count + 1 if now_s - last_s <= self._held_s else 1
            self._crashes[tenant_id, key] = (count, now_s)
            if count >= self._max_crashes:
                self._until_s[tenant_id, key] = now_s + self._held_s

    def held(self, tenant_id: str, keys: Iterable[str], now_s: float) -> dict[str, float]:
        """Return the seconds left for each key that is refused to the tenant."""
        self._drop_expired(now_s)
        cases = {key: self._until_s.get((tenant_id, key)) for key in keys}
        return {key: until - now_s for key, until in cases.items() if until is not None}

    def count(self, now_s: float) -> int:
        self._drop_expired(now_s)
        return len({key for _, key in self._until_s})

    def _drop_expired(self, now_s: float) -> None:
        for case in [c for c, until in self._until_s.items() if until <= now_s]:
            del self._until_s[case]
            self._crashes.pop(case, None)
