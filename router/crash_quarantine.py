"""The quarantine of assets that crash replicas. Pure; the time is an argument.

When a replica dies, every asset of the request that it was generating is suspected, except those
that have completed a generation before. At the second crash the asset is refused to the request's
tenant until the quarantine ends, so that one bad file does not crash one replica after another.
Other tenants are not affected: another file of the request may be the cause, and no tenant may
make a public asset unavailable to the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

from cachetools import LRUCache

CRASHES = 2
HELD_S = 3600.0
#: The most assets that are tracked; the least recently seen are dropped first.
_MAX_TRACKED = 100_000

#: The tenant of the crashed request and the asset's content key.
_Case = tuple[str, str]


class CrashQuarantine:
    """Mutable: proven assets; the count and time of crashes; the end of each quarantine."""

    def __init__(self, crashes: int = CRASHES, held_s: float = HELD_S) -> None:
        self._max_crashes = crashes
        self._held_s = held_s
        self._proven: LRUCache[str, bool] = LRUCache(_MAX_TRACKED)
        self._crashes: LRUCache[_Case, tuple[int, float]] = LRUCache(_MAX_TRACKED)
        self._until_s: dict[_Case, float] = {}

    def succeeded(self, keys: Iterable[str]) -> None:
        """Record that a generation with these assets completed."""
        for key in keys:
            self._proven[key] = True

    def crashed(self, tenant_id: str, keys: Iterable[str], now_s: float) -> None:
        """Record that a replica died during a generation with these assets."""
        for key in keys:
            if key in self._proven:
                continue
            count, last_s = self._crashes.get((tenant_id, key), (0, now_s))
            count = count + 1 if now_s - last_s <= self._held_s else 1
            self._crashes[tenant_id, key] = (count, now_s)
            if count >= self._max_crashes:
                self._until_s[tenant_id, key] = now_s + self._held_s

    def held(self, tenant_id: str, keys: Iterable[str], now_s: float) -> dict[str, float]:
        """Return the keys that are refused to the tenant, and the seconds left for each."""
        self._drop_expired(now_s)
        cases = {key: self._until_s.get((tenant_id, key)) for key in keys}
        return {key: until - now_s for key, until in cases.items() if until is not None}

    def count(self, now_s: float) -> int:
        """Return the number of assets in quarantine."""
        self._drop_expired(now_s)
        return len({key for _, key in self._until_s})

    def _drop_expired(self, now_s: float) -> None:
        """Drop expired quarantines together with their crash counts."""
        for case in [c for c, until in self._until_s.items() if until <= now_s]:
            del self._until_s[case]
            self._crashes.pop(case, None)
