"""Weighted-fair order by tenant: start-time fair queueing on work, and a memory.

Each request gets a virtual finish time: its tenant's previous one (or the queue's
virtual time, if the tenant was idle) plus work / weight. Served in that order, two
tenants that both wait get work in proportion to their weights, and one that was
idle saves up nothing. Goyal, Vin and Cheng, SIGCOMM 1996.

That alone would still let a tenant that never stops take its full share of every moment in which
others come in a rush. So who has had more than a part of everything lately steps back behind
those who have not, until that has faded.
"""

from __future__ import annotations

import math

#: A tenant that has had more than this part of the work lately, per weight, steps back.
OVER_SHARE = 0.25
#: Who has had all but this part is alone.
_ALONE = 0.02
#: What was done so long ago counts a third (1/e).
FADE_S = 600.0


class FairClock:
    """The queue's virtual time, and who has had how much. One instance a queue; forgets tenants
    that fall idle."""

    def __init__(self, over_share: float = OVER_SHARE, fade_s: float = FADE_S) -> None:
        self._over_share = over_share
        self._fade_s = fade_s
        self.now = 0.0
        self._last_finish: dict[str, float] = {}
        self._forget_at = 64
        #: Work by tenant, all of it scaled as if it were done at ``_since_s``.
        self._usage: dict[str, float] = {}
        self._total = 0.0
        self._since_s = 0.0

    def stamp(self, tenant_id: str, work: float, weight: float) -> float:
        """The virtual finish time of a request that arrives now."""
        start = max(self.now, self._last_finish.get(tenant_id, 0.0))
        finish = start + work / weight
        self._last_finish[tenant_id] = finish
        return finish

    def is_over_share(
        self, tenant_id: str, weight: float, waiting: float, all_waiting: float, now_s: float
    ) -> bool:
        """Whether the tenant, with what it has waiting, has more than its part."""
        grown = self._grown(now_s)
        mine = self._usage.get(tenant_id, 0.0) / grown + waiting
        total = self._total / grown + all_waiting
        if total - mine < _ALONE * total:
            return False  # there is nobody to step back behind
        return mine / weight > self._over_share * total

    def charge(self, tenant_id: str, work: float, weight: float) -> None:
        """What a request took beyond its work: its tenant's next ones come so much later."""
        last = max(self.now, self._last_finish.get(tenant_id, 0.0))
        self._last_finish[tenant_id] = last + work / weight

    def served(
        self,
        tenant_id: str,
        virtual_finish: float,
        work: float,
        now_s: float,
        least_waiting: float = math.inf,
    ) -> None:
        """A request of this stamp starts: virtual time moves on. Not beyond ``least_waiting``,
        the first of the crowd from whose end it was taken: or whoever comes next would stand
        behind all of them."""
        self.now = max(self.now, min(virtual_finish, least_waiting))
        if len(self._last_finish) > self._forget_at:
            self._last_finish = {t: f for t, f in self._last_finish.items() if f > self.now}
            self._forget_at = max(64, 2 * len(self._last_finish))
        usage = work * self._grown(now_s)
        self._usage[tenant_id] = self._usage.get(tenant_id, 0.0) + usage
        self._total += usage

    def _grown(self, now_s: float) -> float:
        """How much more work done now counts than what was done at ``_since_s``."""
        if now_s - self._since_s > 20 * self._fade_s:
            faded = math.exp((self._since_s - now_s) / self._fade_s)
            least = 1e-6 * self._total
            self._usage = {
                t: usage * faded for t, usage in self._usage.items() if usage * faded > least
            }
            self._total = sum(self._usage.values())
            self._since_s = now_s
        return math.exp((now_s - self._since_s) / self._fade_s)
