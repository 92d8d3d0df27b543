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

#: Uses of one entry closer together than this are one visit.
SESSION_S = 1800.0
#: How much of a tier one tenant's own entries may fill while others want to use it.
SHARE = 0.25
#: What has not been used for so long is not protected from anybody.
FORGOTTEN_S = 24 * 3600.0
#: How much each visit of its owner, for whatever, adds to what an entry is worth.
_OWNER_VISIT = 0.1


@dataclass(frozen=True, slots=True)
class Entry:
    """``owner`` is the only tenant that has used it; empty when several have."""

    key: str
    size_bytes: int
    owner: str
    last_used_s: float
    visits: int
    owner_visits: int


def victims(
    entries: Iterable[Entry],
    needed_bytes: int,
    share_bytes: float,
    owned_bytes: Mapping[str, int],
    now_s: float,
    session_s: float = SESSION_S,
) -> list[str]:
    """The keys that must go so that ``needed_bytes`` become free, in the order in which they
    should; all of them, if that is not enough.

    ``entries`` are those that may go; ``owned_bytes`` counts, by tenant, everything that it
    alone uses, held or not; beyond ``share_bytes`` its own goes first.
    """

    def worth(entry: Entry) -> tuple[bool, float, float]:
        if now_s - entry.last_used_s <= session_s:
            return True, 0.0, entry.last_used_s
        return False, entry.visits + _OWNER_VISIT * entry.owner_visits, entry.last_used_s

    order = sorted(entries, key=worth)
    owned = dict(owned_bytes)
    chosen: dict[str, None] = {}

    def choose(entry: Entry) -> None:
        nonlocal needed_bytes
        chosen[entry.key] = None
        needed_bytes -= entry.size_bytes
        if entry.owner:
            owned[entry.owner] -= entry.size_bytes

    if max(owned.values(), default=0) > share_bytes:
        for entry in order:
            forgotten = now_s - entry.last_used_s > FORGOTTEN_S
            if needed_bytes > 0 and (forgotten or owned.get(entry.owner, 0) > share_bytes):
                choose(entry)
    for entry in order:
        if needed_bytes > 0 and entry.key not in chosen:
            choose(entry)
    return list(chosen)


#: Stands for the owners of what several tenants use.
_SEVERAL = "*"


def owned_by(owner: str, user: str) -> str:
    """Whose an entry is after ``user`` has used it; the platform itself changes nothing."""
    if not user or owner in (user, _SEVERAL):
        return owner
    return _SEVERAL if owner else user


def alone(owner: str) -> str:
    """The only tenant that has used it; empty when there is none, or more."""
    return "" if owner == _SEVERAL else owner


#: Assets and tenants whose visits are remembered; the least recently seen are forgotten first.
_REMEMBERED = 100_000


class Visits:
    """How often, and by whom, assets are come back for. Mutable; remembers what has left."""

    def __init__(self, session_s: float = SESSION_S) -> None:
        self.session_s = session_s
        self._assets: LRUCache[str, tuple[int, float, str]] = LRUCache(_REMEMBERED)
        self._owners: LRUCache[str, tuple[int, float]] = LRUCache(_REMEMBERED)

    def used(self, key: str, owner: str, now_s: float) -> None:
        """``owner`` is the tenant that uses it; empty for the platform itself."""
        visits, last_s, of = self._assets.get(key, (0, -inf, owner))
        if now_s - last_s > self.session_s:
            visits += 1
        self._assets[key] = visits, now_s, owned_by(of, owner)
        if owner:
            visits, last_s = self._owners.get(owner, (0, -inf))
            self._owners[owner] = visits + (now_s - last_s > self.session_s), now_s

    def entry(self, key: str, size_bytes: int) -> Entry:
        visits, last_s, owner = self._assets.get(key, (0, -inf, ""))
        owner = alone(owner)
        owner_visits = self._owners.get(owner, (0, 0.0))[0] if owner else 0
        return Entry(key, size_bytes, owner, last_s, visits, owner_visits)
