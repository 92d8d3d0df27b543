"""The choice between two eviction policies, by simulating both on the tier's own uses. Pure.

Neither policy is better on every stream. The visits policy keeps entries that users return to and
drops one-time ones; the recency policy (LRU) follows a changing popular set at once. A simulated
tier obeys one policy, with keys and sizes only; the policy whose simulation has missed fewer
bytes lately is used (Subramanian, Smaragdakis and Loh, Adaptive caches, MICRO 2006). A saturating
counter holds the difference (as in Qureshi et al., Adaptive insertion policies, ISCA 2007), so old
misses are forgotten without a half-life to tune.

Time is measured in bytes used, so the result does not depend on the request rate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from heapq import heapify, heappop, heappush
from math import inf

from orchestrator.eviction import AccessHistory, TierEntry

#: The bound of the difference in missed bytes, in budgets.
_MAX_LEAD_BUDGETS = 0.5
#: The policies switch when the current one falls behind by this many budgets, or by this share of
#: all bytes missed so far, whichever is less.
_SWITCH_BUDGETS, _SWITCH_SHARE_OF_MISSED = 1 / 4, 0.01
#: The length of a session, in budgets of bytes used: uses of an entry closer together than this are
#: one visit.
SESSION = 0.75


class EvictionPolicy(StrEnum):
    """An eviction policy."""

    VISITS = "visits"
    RECENCY = "recency"


class SimulatedTier:
    """The keys that a tier under one policy would hold. The recency policy is the visits policy
    with an infinite session."""

    def __init__(
        self, budget_bytes: int, session_bytes: float, worth: Callable[[str], float]
    ) -> None:
        """``worth(key)`` must not fall between two uses of the key."""
        self._budget_bytes = budget_bytes
        self._session_bytes = session_bytes
        self._worth = worth
        self._held_bytes = 0
        #: key → (last use, size), both in bytes. Entries within a session are ordered oldest first.
        #: Entries outside a session are also in a heap by worth; stale heap items are skipped.
        self._in_session: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._idle: dict[str, tuple[int, int]] = {}
        self._heap: list[tuple[float, int, str]] = []

    def __contains__(self, key: str) -> bool:
        return key in self._in_session or key in self._idle

    def used(self, key: str, size_bytes: int, at_bytes: int) -> bool:
        """Record a use and return whether it was a miss. ``at_bytes`` is the time of the use."""
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
        #: The number of policy changes, and of uses under each policy.
        self.changes = 0
        self.uses_by_policy = dict.fromkeys(EvictionPolicy, 0)
        self._budget_bytes = budget_bytes
        session_bytes = SESSION * budget_bytes
        self._history = AccessHistory(session_bytes)
        self._sessions_bytes = {EvictionPolicy.VISITS: session_bytes, EvictionPolicy.RECENCY: inf}
        self._by_visits = SimulatedTier(budget_bytes, session_bytes, self._history.worth)
        self._by_recency = SimulatedTier(budget_bytes, inf, self._history.worth)
        #: Bytes missed by the visits ghost minus those by the recency ghost, within bounds.
        self._behind_bytes = 0.0
        self._missed_bytes = 0

    @property
    def session_bytes(self) -> float:
        """The ``session_bytes`` of the current policy, for ``victims``."""
        return self._sessions_bytes[self.policy]

    def used(self, key: str, size_bytes: int, tenant_id: str, now_s: float) -> None:
        """Record a use; ``tenant_id`` is empty for the platform itself."""
        at_bytes = self._history.used(key, size_bytes, tenant_id, now_s)
        visits_missed = self._by_visits.used(key, size_bytes, at_bytes)
        recency_missed = self._by_recency.used(key, size_bytes, at_bytes)
        if visits_missed if self.policy is EvictionPolicy.VISITS else recency_missed:
            self._missed_bytes += size_bytes
        if visits_missed != recency_missed:
            self._update_law(size_bytes if visits_missed else -size_bytes)
        self.uses_by_policy[self.policy] += 1

    def _update_law(self, difference_bytes: int) -> None:
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
        """Remove a deleted asset from both ghosts."""
        self._by_visits.forget(key)
        self._by_recency.forget(key)

    def entry(self, key: str, size_bytes: int, last_used_s: float = -inf) -> TierEntry:
        """Return the eviction data of a key; ``last_used_s`` is the fallback for an unknown key."""
        return self._history.entry(key, size_bytes, last_used_s)
