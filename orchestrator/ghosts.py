"""The choice between two eviction laws, by simulating both on the tier's own uses. Pure.

Neither law is better on every stream. The visits law keeps entries that users return to; the
recency law (LRU) follows a changing popular set at once. A ghost simulates a tier under one law
with keys and sizes only; the law whose ghost recently missed fewer bytes is applied (Subramanian,
Smaragdakis and Loh, Adaptive caches, MICRO 2006). The difference is counted within bounds (as by
Qureshi et al., Adaptive insertion policies, ISCA 2007), so old misses lose their effect.

Time is counted in bytes used, so the speed of a stream does not matter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from heapq import heapify, heappop, heappush
from math import inf

from orchestrator.eviction import AccessHistory, TierEntry

#: How far ahead a law can be, in budgets; so much must be missed before an old lead is lost.
_MOST_LEAD = 0.5
#: How far behind the law that rules must fall before the other one rules: so many budgets, or
#: this share of what was missed so far, whichever is less.
_PATIENCE, _SHARE_OF_MISSED = 1 / 4, 0.01
#: Uses of one entry are one visit while less than this, in budgets, has been used between.
SESSION = 0.75


class Law(StrEnum):
    VISITS = "visits"
    RECENCY = "recency"


class Ghost:
    """The keys that a tier of one law would hold. Recency is visits with an endless session."""

    def __init__(
        self, budget_bytes: int, session_bytes: float, worth: Callable[[str], float]
    ) -> None:
        """``worth`` of a key does not fall until the key is used."""
        self._budget_bytes = budget_bytes
        self._session_bytes = session_bytes
        self._worth = worth
        self._held_bytes = 0
        #: When it was used and its size: in use lately, the oldest first; and at rest, the least
        #: worth first in a heap in which those that were used since, or left, are passed over.
        self._lately: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._resting: dict[str, tuple[int, int]] = {}
        self._heap: list[tuple[float, int, str]] = []

    def __contains__(self, key: str) -> bool:
        return key in self._lately or key in self._resting

    def used(self, key: str, size_bytes: int, at_bytes: int) -> bool:
        """Whether it was missing."""
        missing = key not in self
        self.forget(key)
        if size_bytes <= self._budget_bytes:
            while self._held_bytes + size_bytes > self._budget_bytes:
                self.forget(self._victim(at_bytes - size_bytes))
            self._lately[key] = at_bytes, size_bytes
            self._held_bytes += size_bytes
        return missing

    def forget(self, key: str) -> None:
        found = self._lately.pop(key, None) or self._resting.pop(key, None)
        self._held_bytes -= found[1] if found else 0

    def _victim(self, now_bytes: int) -> str:
        while self._lately:
            key, (at_bytes, _) = next(iter(self._lately.items()))
            if now_bytes - at_bytes <= self._session_bytes:
                break
            self._resting[key] = self._lately.pop(key)
            heappush(self._heap, (self._worth(key), at_bytes, key))
        if len(self._heap) > 2 * len(self._resting) + 64:
            self._heap = [(self._worth(key), at, key) for key, (at, _) in self._resting.items()]
            heapify(self._heap)
        while self._heap:
            worth, at_bytes, key = heappop(self._heap)
            if key in self._resting and self._resting[key][0] == at_bytes:
                if self._worth(key) <= worth:
                    return key
                heappush(self._heap, (self._worth(key), at_bytes, key))
        return next(iter(self._lately))


class Ruler:
    """What a tier's uses say about its entries, and which law should rule it. Mutable."""

    def __init__(self, budget_bytes: int) -> None:
        self.law = Law.VISITS
        #: How often that changed; how many uses each law ruled.
        self.changes = 0
        self.ruled = dict.fromkeys(Law, 0)
        self._budget_bytes = budget_bytes
        session_bytes = SESSION * budget_bytes
        self._visits = AccessHistory(session_bytes)
        self._sessions_bytes = {Law.VISITS: session_bytes, Law.RECENCY: inf}
        self._by_visits = Ghost(budget_bytes, session_bytes, self._visits.worth)
        self._by_recency = Ghost(budget_bytes, inf, self._visits.worth)
        #: How many more bytes the ghost by visits has missed, within bounds.
        self._behind_bytes = 0.0
        self._missed_bytes = 0

    @property
    def session_bytes(self) -> float:
        """The session length of the law in force, for ``victims``."""
        return self._sessions_bytes[self.law]

    def used(self, key: str, size_bytes: int, tenant_id: str, now_s: float) -> None:
        """``tenant_id`` is the tenant that uses it; empty for the platform itself."""
        at_bytes = self._visits.used(key, size_bytes, tenant_id, now_s)
        by_visits = self._by_visits.used(key, size_bytes, at_bytes)
        by_recency = self._by_recency.used(key, size_bytes, at_bytes)
        if by_visits if self.law is Law.VISITS else by_recency:
            self._missed_bytes += size_bytes
        if by_visits != by_recency:
            self._judge(size_bytes if by_visits else -size_bytes)
        self.ruled[self.law] += 1

    def _judge(self, bytes_more: int) -> None:
        most = _MOST_LEAD * self._budget_bytes
        self._behind_bytes = max(-most, min(most, self._behind_bytes + bytes_more))
        behind = self._behind_bytes if self.law is Law.VISITS else -self._behind_bytes
        patience = min(_PATIENCE * self._budget_bytes, _SHARE_OF_MISSED * self._missed_bytes)
        if behind > patience:
            self.law = Law.RECENCY if self.law is Law.VISITS else Law.VISITS
            self.changes += 1

    def forget(self, key: str) -> None:
        """Remove a deleted asset from both ghosts."""
        self._by_visits.forget(key)
        self._by_recency.forget(key)

    def entry(self, key: str, size_bytes: int, last_used_s: float = -inf) -> TierEntry:
        """``last_used_s`` stands in where no use of the key is remembered."""
        return self._visits.entry(key, size_bytes, last_used_s)
