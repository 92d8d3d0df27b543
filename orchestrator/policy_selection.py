"""The choice between two eviction policies by simulating both on the tier's own uses. Pure.

The visits policy keeps entries that users return to; recency (LRU) follows a changing popular set.
The policy whose simulation missed fewer bytes lately is used (Subramanian, Smaragdakis and Loh,
Adaptive caches, MICRO 2006); a saturating counter forgets old misses (Qureshi et al., Adaptive
insertion policies, ISCA 2007). Time is in bytes used, independent of the request rate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from heapq import heapify, heappop, heappush
from math import inf

from orchestrator.eviction import AccessHistory, TierEntry

#: Bound of the difference in missed bytes.
_MAX_LEAD_BUDGETS = 0.5
#: The policy switches when behind by the lesser of these: budgets, share of all missed bytes.
_SWITCH_BUDGETS, _SWITCH_SHARE_OF_MISSED = 1 / 4, 0.01
#: Uses of an entry within this many budgets of bytes are one visit.
SESSION = 0.75


class EvictionPolicy(StrEnum):
    """The session length of ``victims``: SESSION budgets (visits), or infinite (recency, LRU)."""

    VISITS = "visits"
    RECENCY = "recency"


class SimulatedTier:
    """The keys that a tier under one policy would hold. Recency has an infinite session."""

    def __init__(
        self, budget_bytes: int, session_bytes: float, worth: Callable[[str], float]
    ) -> None:
        """``worth(key)`` must not fall between two uses of the key."""
        self._budget_bytes = budget_bytes
        self._session_bytes = session_bytes
        self._worth = worth
        self._held_bytes = 0
        #: key → (last use, size), in bytes. In session: oldest first; others: also in a heap by
        #: worth, whose stale items are skipped.
        self._in_session: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._idle: dict[str, tuple[int, int]] = {}
        self._heap: list[tuple[float, int, str]] = []

    def __contains__(self, key: str) -> bool:
        return key in self._in_session or key in self._idle

    def used(self, key: str, size_bytes: int, at_bytes: int) -> bool:
        """Record a use; return whether it was a miss."""
        missing = key not in self
        self.forget(key)
        if size_bytes <= self._budget_bytes:
            while self._held_bytes + size_bytes > self._budget_bytes:
                self.forget(self._victim(at_bytes - size_bytes))
            self._in_session[key] = at_bytes, size_bytes
            self._held_bytes += size_bytes
        return missing

    def forget(self, key: str) -> None:
        removed = self._in_session.pop(key, None) or self._idle.pop(key, None)
        self._held_bytes -= removed[1] if removed else 0

    def _victim(self, now_bytes: int) -> str:
        while self._in_session:
            key, (at_bytes, _) = next(iter(self._in_session.items()))
            if now_bytes - at_bytes <= self._session_bytes:
                break
            self._idle[key] = self._in_session.pop(key)
            heappush(self._heap, (self._worth(key), at_bytes, key))
        if len(self._heap) > 2 * len(self._idle) + 64:
            self._heap = [(self._worth(key), at, key) for key, (at, _) in self._idle.items()]
            heapify(self._heap)
        while self._heap:
            worth, at_bytes, key = heappop(self._heap)
            if key in self._idle and self._idle[key][0] == at_bytes:
                if self._worth(key) <= worth:
                    return key
                heappush(self._heap, (self._worth(key), at_bytes, key))
        return next(iter(self._in_session))


class PolicySelector:
    """A tier's access history and its current eviction policy. Mutable."""

    def __init__(self, budget_bytes: int) -> None:
        self.policy = EvictionPolicy.VISITS
        self.changes = 0
        self.uses_by_policy = dict.fromkeys(EvictionPolicy, 0)
        self._budget_bytes = budget_bytes
        session_bytes = SESSION * budget_bytes
        self._history = AccessHistory(session_bytes)
        self._sessions_bytes = {EvictionPolicy.VISITS: session_bytes, EvictionPolicy.RECENCY: inf}
        self._by_visits = SimulatedTier(budget_bytes, session_bytes, self._history.worth)
        self._by_recency = SimulatedTier(budget_bytes, inf, self._history.worth)
        #: Bytes missed by visits minus those by recency, bounded.
        self._behind_bytes = 0.0
        self._missed_bytes = 0

    @property
    def session_bytes(self) -> float:
        """The argument of ``victims``."""
        return self._sessions_bytes[self.policy]

    def used(self, key: str, size_bytes: int, tenant_id: str, now_s: float) -> None:
        at_bytes = self._history.used(key, size_bytes, tenant_id, now_s)
        visits_missed = self._by_visits.used(key, size_bytes, at_bytes)
        recency_missed = self._by_recency.used(key, size_bytes, at_bytes)
        if visits_missed if self.policy is EvictionPolicy.VISITS else recency_missed:
            self._missed_bytes += size_bytes
        if visits_missed != recency_missed:
            self._update_policy(size_bytes if visits_missed else -size_bytes)
        self.uses_by_policy[self.policy] += 1

    def _update_policy(self, difference_bytes: int) -> None:
        bound = _MAX_LEAD_BUDGETS * self._budget_bytes
        self._behind_bytes = max(-bound, min(bound, self._behind_bytes + difference_bytes))
        behind = self._behind_bytes if self.policy is EvictionPolicy.VISITS else -self._behind_bytes
        margin = min(
            _SWITCH_BUDGETS * self._budget_bytes, _SWITCH_SHARE_OF_MISSED * self._missed_bytes
        )
        if behind > margin:
            self.policy = (
                EvictionPolicy.RECENCY
                if self.policy is EvictionPolicy.VISITS
                else EvictionPolicy.VISITS
            )
            self.changes += 1

    def forget(self, key: str) -> None:
        self._by_visits.forget(key)
        self._by_recency.forget(key)

    def entry(self, key: str, size_bytes: int, last_used_s: float = -inf) -> TierEntry:
        """As :meth:`AccessHistory.entry`."""
        return self._history.entry(key, size_bytes, last_used_s)
