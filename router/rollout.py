"""A rolling replacement of every replica of a pool.

One at a time; a spare starts first if the maximum allows. None stops while another is down. A new
replica that does not come up ends the rollout.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.autoscaling import Scaling, ScalingCandidate
from router.pool import Pool

#: A spare that is not up by then is given up: no machine has room.
PATIENCE_S = 600.0


class Rollout:
    """The state of a rollout. Mutable."""

    def __init__(self) -> None:
        self.outdated: frozenset[str] = frozenset()
        self.is_given_up = False
        self._has_spare = self._is_spare_unavailable = False
        self._down_since_s: dict[str, float] = {}

    def begin(self, members: Sequence[ScalingCandidate]) -> None:
        self.outdated = frozenset(member.id for member in members)
        self.is_given_up = self._has_spare = self._is_spare_unavailable = False
        self._down_since_s = {}

    def give_up(self) -> None:
        """Stop; keep the current replicas."""
        self.outdated = frozenset()
        self.is_given_up = True

    def step(self, pool: Pool, members: Sequence[ScalingCandidate], now_s: float) -> Scaling:
        """Return what to start or stop. Call it only when autoscaling changes nothing."""
        old = [member for member in members if member.id in self.outdated]
        self.outdated = frozenset(member.id for member in old)
        if not old:
            return Scaling()
        down = [member.id for member in members if not member.is_up]
        self._down_since_s = {name: self._down_since_s.get(name, now_s) for name in down}
        if down:
            since = self._down_since_s
            return self._stop_overdue([name for name in down if now_s - since[name] > PATIENCE_S])
        if len(members) < pool.min:
            return Scaling()
        if not self._has_spare and not self._is_spare_unavailable and len(members) < pool.max:
            self._has_spare = True
            return Scaling(start=1)
        self._has_spare = False
        return Scaling(stop=(min(old, key=lambda m: (m.running, m.value_s, m.id)).id,))

    def _stop_overdue(self, overdue: Sequence[str]) -> Scaling:
        """Stop overdue replicas; give up if a new one other than the spare is among them."""
        if any(name not in self.outdated for name in overdue):
            if not self._has_spare:
                self.give_up()
                return Scaling()
            self._has_spare, self._is_spare_unavailable = False, True
        return Scaling(stop=tuple(overdue))
