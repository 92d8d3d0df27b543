"""The eviction rule of every tier. Pure.

Within a session, reuse is likely; between sessions, visits predict it better than recency. So
entries outside a session go first, by worth, then those within, oldest first. Visits are counted
because uses within a session are correlated (O'Neil et al., The LRU-K page replacement algorithm,
SIGMOD 1993). The entries of a tenant over its share go before all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from cachetools import LRUCache

#: The share of a tier that one tenant's own entries may fill.
SHARE = 0.25
#: An entry unused for both (seconds, budgets of other uses) is not protected from tenants over
#: their share.
FORGOTTEN_S, FORGOTTEN_BUDGETS = 1800.0, 2.0
#: Per visit of the entry's owner to any asset.
_OWNER_VISIT_WORTH = 0.1


@dataclass(frozen=True, slots=True)
class TierEntry:
    """An entry's eviction data. ``tenant_id`` is its only user; empty when several."""

    key: str
    size_bytes: int
    tenant_id: str
    last_used_s: float
    bytes_since_use: float
    worth: float


def victims(
    entries: Iterable[TierEntry],
    needed_bytes: int,
    budget_bytes: int,
    share: float,
    owned_bytes: Mapping[str, int],
    now_s: float,
    session_bytes: float,
) -> list[str]:
    """Return the keys to evict, in order; all if that frees too little.

    ``entries`` are evictable. ``owned_bytes`` maps a tenant to the bytes that it alone uses, leased
    and pinned ones included. Entries used within the last ``session_bytes`` are in a session.
    """

    def rank(entry: TierEntry) -> tuple[bool, float, float]:
        if entry.bytes_since_use <= session_bytes:
            return True, 0.0, -entry.bytes_since_use
        return False, entry.worth, -entry.bytes_since_use

    order = sorted(entries, key=rank)
    owned = dict(owned_bytes)
    chosen: dict[str, None] = {}

    def choose(entry: TierEntry) -> None:
        nonlocal needed_bytes
        chosen[entry.key] = None
        needed_bytes -= entry.size_bytes
        if entry.tenant_id:
            owned[entry.tenant_id] -= entry.size_bytes

    share_bytes = share * budget_bytes
    if max(owned.values(), default=0) > share_bytes:
        for entry in order:
            forgotten = (
                entry.bytes_since_use > FORGOTTEN_BUDGETS * budget_bytes
                and now_s - entry.last_used_s > FORGOTTEN_S
            )
            if needed_bytes > 0 and (forgotten or owned.get(entry.tenant_id, 0) > share_bytes):
                choose(entry)
    for entry in order:
        if needed_bytes > 0 and entry.key not in chosen:
            choose(entry)
    return list(chosen)


#: The owner of an entry that several tenants use.
_SHARED = "*"


def owner_after(tenant_id: str, user: str) -> str:
    """Return the owner after a use; the platform (empty) changes nothing."""
    if not user or tenant_id in (user, _SHARED):
        return tenant_id
    return _SHARED if tenant_id else user


def sole_owner(tenant_id: str) -> str:
    """Return an entry's only tenant; empty when none or several."""
    return "" if tenant_id == _SHARED else tenant_id


_MAX_TRACKED = 100_000


class AccessHistory:
    """Visits by asset, evicted ones included, and by tenant. Mutable."""

    def __init__(self, session_bytes: float) -> None:
        self._session_bytes = session_bytes
        self._now_bytes = 0
        self._assets: LRUCache[str, _KeyHistory] = LRUCache(_MAX_TRACKED)
        self._owners: LRUCache[str, tuple[int, int]] = LRUCache(_MAX_TRACKED)

    def used(self, key: str, size_bytes: int, tenant_id: str, now_s: float) -> int:
        """Record a use; return the bytes used so far."""
        now_bytes = self._now_bytes = self._now_bytes + size_bytes
        last = self._assets.get(key)
        visits, owner = (last.visits, last.tenant_id) if last else (0, tenant_id)
        if last is None or now_bytes - last.at_bytes > self._session_bytes:
            visits += 1
        self._assets[key] = _KeyHistory(visits, now_bytes, now_s, owner_after(owner, tenant_id))
        if tenant_id:
            visits, at_bytes = self._owners.get(tenant_id, (0, -inf))
            is_new = now_bytes - at_bytes > self._session_bytes
            self._owners[tenant_id] = visits + is_new, now_bytes
        return now_bytes

    def worth(self, key: str) -> float:
        """Return the key's visits plus a part of its sole owner's."""
        seen = self._assets.get(key, _NO_HISTORY)
        tenant_id = sole_owner(seen.tenant_id)
        return seen.visits + (
            _OWNER_VISIT_WORTH * self._owners.get(tenant_id, (0, 0))[0] if tenant_id else 0.0
        )

    def entry(self, key: str, size_bytes: int, last_used_s: float = -inf) -> TierEntry:
        """``last_used_s`` is the fallback for an unknown key."""
        seen = self._assets.get(key, _NO_HISTORY)
        bytes_since_use = self._now_bytes - seen.at_bytes
        tenant_id = sole_owner(seen.tenant_id)
        last_used_s = max(last_used_s, seen.at_s)
        return TierEntry(key, size_bytes, tenant_id, last_used_s, bytes_since_use, self.worth(key))


@dataclass(frozen=True, slots=True)
class _KeyHistory:
    visits: int
    at_bytes: float
    at_s: float
    tenant_id: str


_NO_HISTORY = _KeyHistory(0, -inf, -inf, "")
