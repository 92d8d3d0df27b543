"""Weighted fair order of tenants: start-time fair queueing on work, plus recent usage.

A request's virtual finish time is its tenant's previous one (or the queue's virtual time if idle)
plus work / weight. Backlogged tenants get work in proportion to their weights; idle time earns no
credit. Goyal, Vin and Cheng, SIGCOMM 1996.

A tenant over its share of recent usage is deprioritized until the usage fades.
"""

from __future__ import annotations

import math

#: Share of recent work, per weight, above which a tenant is deprioritized.
OVER_SHARE = 0.25
#: If all others together have less, nobody is deprioritized.
_MIN_OTHERS_SHARE = 0.02
#: Work done this long ago counts 1/e.
FADE_S = 600.0


class FairClock:
    """One queue's virtual time and recent usage; drops idle tenants."""

    def __init__(self, over_share: float = OVER_SHARE, fade_s: float = FADE_S) -> None:
        self._over_share = over_share
        self._fade_s = fade_s
        self.now = 0.0
        self._last_finish: dict[str, float] = {}
        self._forget_at = 64
        #: Scaled to its value at ``_since_s``.
        self._usage: dict[str, float] = {}
        self._total = 0.0
        self._since_s = 0.0

    def stamp(self, tenant_id: str, work: float, weight: float) -> float:
        """Return the virtual finish time of an arrival."""
        start = max(self.now, self._last_finish.get(tenant_id, 0.0))
        finish = start + work / weight
        self._last_finish[tenant_id] = finish
        return finish

    def is_over_share(
        self, tenant_id: str, weight: float, waiting: float, all_waiting: float, now_s: float
    ) -> bool:
        """Return whether the tenant is over its share; queued work counts as usage."""
        scale = self._usage_scale(now_s)
        own = self._usage.get(tenant_id, 0.0) / scale + waiting
        total = self._total / scale + all_waiting
        if total - own < _MIN_OTHERS_SHARE * total:
            return False
        return own / weight > self._over_share * total

    def charge(self, tenant_id: str, work: float, weight: float) -> None:
        """Charge work beyond an estimate to the tenant's later requests."""
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
        """Record a start; virtual time advances to its finish time, at most to ``least_waiting``:
        if a backlog's last request starts first, arrivals must not queue behind the rest."""
        self.now = max(self.now, min(virtual_finish, least_waiting))
        if len(self._last_finish) > self._forget_at:
            self._last_finish = {t: f for t, f in self._last_finish.items() if f > self.now}
            self._forget_at = max(64, 2 * len(self._last_finish))
        usage = work * self._usage_scale(now_s)
        self._usage[tenant_id] = self._usage.get(tenant_id, 0.0) + usage
        self._total += usage

    def _usage_scale(self, now_s: float) -> float:
        if now_s - self._since_s > 20 * self._fade_s:
            faded = math.exp((self._since_s - now_s) / self._fade_s)
            least = 1e-6 * self._total
            self._usage = {
                t: usage * faded for t, usage in self._usage.items() if usage * faded > least
            }
            self._total = sum(self._usage.values())
            self._since_s = now_s
        return math.exp((now_s - self._since_s) / self._fade_s)
