"""Replacing every replica of a pool by a new one: a pure decision; the time is an argument.

One after another, so that the pool misses one at a time; where it may have one more, that one
is started first. Nothing is taken away while somebody is not up. A new one that fails ends it:
a release that cannot start must not take the pool with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.scaling import Member, Pool, Scaling

#: For as long it waits for one that is not up; then it goes on without a spare.
PATIENCE_S = 600.0


class Renewal:
    """Mutable: who is to be replaced, whether one more than usual was ordered for the next of
    them or cannot be had, since when somebody is not up."""

    def __init__(self) -> None:
        self.outdated: frozenset[str] = frozenset()
        self._has_spare = self._is_full = False
        self._late_since_s: float | None = None

    def begin(self, members: Sequence[Member]) -> None:
        """All that are there now are to be replaced."""
        self.outdated = frozenset(member.id for member in members)
        self._has_spare = self._is_full = False
        self._late_since_s = None

    def give_up(self) -> None:
        """What is there stays."""
        self.outdated = frozenset()

    def step(self, pool: Pool, members: Sequence[Member], now_s: float) -> Scaling:
        """What to start or stop now; to be asked when nothing else changes."""
        old = [member for member in members if member.id in self.outdated]
        self.outdated = frozenset(member.id for member in old)
        if not old:
            return Scaling()
        if late := tuple(member.id for member in members if not member.is_up):
            if self._late_since_s is None:
                self._late_since_s = now_s
            if now_s - self._late_since_s <= PATIENCE_S:
                return Scaling()
            self._is_full = True
            return Scaling(stop=late)
        self._late_since_s = None
        if len(members) < pool.min:
            return Scaling()
        if not self._has_spare and not self._is_full and len(members) < pool.max:
            self._has_spare = True
            return Scaling(start=1)
        self._has_spare = False
        return Scaling(stop=(min(old, key=lambda m: (m.running, m.value_s, m.id)).id,))
