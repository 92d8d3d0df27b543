"""Replacing every replica of a pool by a new one: a pure decision; the time is an argument.

One after another, so that the pool misses one at a time; where it may have one more, that one
is started first. Nothing is taken away while somebody is not up. A new one that fails, or does
not come up, ends it: a release that cannot start must not take the pool with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.autoscaling import Pool, Scaling, ScalingCandidate

#: For as long it waits for one that is not up. A spare is given up then: no machine has room.
PATIENCE_S = 600.0


class Rollout:
    """Mutable: who is to be replaced; whether one more than usual was ordered for the next of
    them, or cannot be had; since when who is not up."""

    def __init__(self) -> None:
        self.outdated: frozenset[str] = frozenset()
        self.is_given_up = False
        self._has_spare = self._is_full = False
        self._late_since_s: dict[str, float] = {}

    def begin(self, members: Sequence[ScalingCandidate]) -> None:
        """All that are there now are to be replaced."""
        self.outdated = frozenset(member.id for member in members)
        self.is_given_up = self._has_spare = self._is_full = False
        self._late_since_s = {}

    def give_up(self) -> None:
        """What is there stays."""
        self.outdated = frozenset()
        self.is_given_up = True

    def step(self, pool: Pool, members: Sequence[ScalingCandidate], now_s: float) -> Scaling:
        """What to start or stop now; to be asked when nothing else changes."""
        old = [member for member in members if member.id in self.outdated]
        self.outdated = frozenset(member.id for member in old)
        if not old:
            return Scaling()
        late = [member.id for member in members if not member.is_up]
        self._late_since_s = {name: self._late_since_s.get(name, now_s) for name in late}
        if late:
            since = self._late_since_s
            return self._missing([name for name in late if now_s - since[name] > PATIENCE_S])
        if len(members) < pool.min:
            return Scaling()
        if not self._has_spare and not self._is_full and len(members) < pool.max:
            self._has_spare = True
            return Scaling(start=1)
        self._has_spare = False
        return Scaling(stop=(min(old, key=lambda m: (m.running, m.value_s, m.id)).id,))

    def _missing(self, overdue: Sequence[str]) -> Scaling:
        """Somebody is not up; these have not been for too long."""
        if any(name not in self.outdated for name in overdue):
            if not self._has_spare:
                self.give_up()
                return Scaling()
            self._has_spare, self._is_full = False, True
        return Scaling(stop=tuple(overdue))
