"""Which entries of a tier leave it: one law for every tier. Pure.

Users work in sessions: what was used a moment ago is used again, whatever it is. Between
sessions, how often somebody came back for an entry tells more than when. So entries at
rest go first, the least worth before the others; then those in use lately, the oldest
first. Visits are counted, not uses: the many uses within one session say no more than the
first (O'Neil et al., The LRU-K page replacement algorithm, SIGMOD 1993, call the others
correlated). What others use shall not be flushed by one tenant that runs through
hundreds of its own: beyond its share, a tenant's entries go before everybody else's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from cachetools import LRUCache

#: How much of a tier one tenant's own entries may fill while others want to use it.
SHARE = 0.25
#: What has not been used for so long, while so many budgets of others were, is not protected from
#: anybody.
FORGOTTEN_S, FORGOTTEN_BUDGETS = 1800.0, 2.0
#: How much each visit of its owner, for whatever, adds to what an entry is worth.
_OWNER_VISIT = 0.1


@dataclass(frozen=True, slots=True)
class TierEntry:
    """``tenant_id`` is the only tenant that has used it; empty when several have."""

    key: str
    size_bytes: int
    tenant_id: str
    last_used_s: float
    #: How much the tier has been used since, in bytes.
    since_bytes: float
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
    """The keys that must go so that ``needed_bytes`` become free, in the order in which they
    should; all of them, if that is not enough.

    ``entries`` are those that may go; ``owned_bytes`` counts, by tenant, everything that it
    alone uses, held or not; beyond ``share`` of the tier's ``budget_bytes`` its own goes first.
    """

    def rank(entry: TierEntry) -> tuple[bool, float, float]:
        if entry.since_bytes <= session_bytes:
            return True, 0.0, -entry.since_bytes
        return False, entry.worth, -entry.since_bytes

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
                entry.since_bytes > FORGOTTEN_BUDGETS * budget_bytes
                and now_s - entry.last_used_s > FORGOTTEN_S
            )
            if needed_bytes > 0 and (forgotten or owned.get(entry.tenant_id, 0) > share_bytes):
                choose(entry)
    for entry in order:
        if needed_bytes > 0 and entry.key not in chosen:
            choose(entry)
    return list(chosen)


#: Stands for the owners of what several tenants use.
_SEVERAL = "*"


def user_of(tenant_id: str, user: str) -> str:
    """Whose an entry is after ``user`` has used it; the platform itself changes nothing."""
    if not user or tenant_id in (user, _SEVERAL):
        return tenant_id
    return _SEVERAL if tenant_id else user


def alone(tenant_id: str) -> str:
    """The only tenant that has used it; empty when there is none, or more."""
    return "" if tenant_id == _SEVERAL else tenant_id


#: Assets and tenants whose visits are remembered; the least recently seen are forgotten first.
_REMEMBERED = 100_000


class AccessHistory:
    """How often, and by whom, assets are come back for. Mutable; remembers what has left."""

    def __init__(self, session_bytes: float) -> None:
        self._session_bytes = session_bytes
        self._now_bytes = 0
        self._assets: LRUCache[str, _Seen] = LRUCache(_REMEMBERED)
        self._owners: LRUCache[str, tuple[int, int]] = LRUCache(_REMEMBERED)

    def used(self, key: str, size_bytes: int, tenant_id: str, now_s: float) -> int:
        """Record a use; ``tenant_id`` is empty for the platform itself. Returns the bytes used so
        far."""
        now_bytes = self._now_bytes = self._now_bytes + size_bytes
        last = self._assets.get(key)
        visits, of = (last.visits, last.tenant_id) if last else (0, tenant_id)
        if last is None or now_bytes - last.at_bytes > self._session_bytes:
            visits += 1
        self._assets[key] = _Seen(visits, now_bytes, now_s, user_of(of, tenant_id))
        if tenant_id:
            visits, at_bytes = self._owners.get(tenant_id, (0, -inf))
            is_new = now_bytes - at_bytes > self._session_bytes
            self._owners[tenant_id] = visits + is_new, now_bytes
        return now_bytes

    def worth(self, key: str) -> float:
        seen = self._assets.get(key, _NEVER)
        tenant_id = alone(seen.tenant_id)
        return seen.visits + (
            _OWNER_VISIT * self._owners.get(tenant_id, (0, 0))[0] if tenant_id else 0.0
        )

    def entry(self, key: str, size_bytes: int, last_used_s: float = -inf) -> TierEntry:
        """``last_used_s`` stands in where no use of the key is remembered."""
        seen = self._assets.get(key, _NEVER)
        since_bytes = self._now_bytes - seen.at_bytes
        tenant_id = alone(seen.tenant_id)
        last_used_s = max(last_used_s, seen.at_s)
        return TierEntry(key, size_bytes, tenant_id, last_used_s, since_bytes, self.worth(key))


@dataclass(frozen=True, slots=True)
class _Seen:
    visits: int
    at_bytes: float
    at_s: float
    tenant_id: str


_NEVER = _Seen(0, -inf, -inf, "")
