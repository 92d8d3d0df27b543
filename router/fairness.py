"""Weighted fair order of tenants: start-time fair queueing on work, plus recent usage.

Each request gets a virtual finish time: its tenant's previous one (or the queue's virtual time if
the tenant was idle) plus work / weight. Served in that order, two backlogged tenants get work in
proportion to their weights, and idle time earns no credit. Goyal, Vin and Cheng, SIGCOMM 1996.

That alone lets a tenant with constant load take its full share while others arrive in bursts. So a
tenant over its share of recent usage is deprioritized behind all others until the usage fades.
"""

from __future__ import annotations

import math

#: A tenant with more than this share of the recent work, per weight, is deprioritized.
OVER_SHARE = 0.25
#: If all other tenants together have less than this share, nobody is deprioritized.
_MIN_OTHERS_SHARE = 0.02
#: Work done this long ago counts 1/e.
FADE_S = 600.0


class FairClock:
    """The virtual time of a queue and the recent usage of each tenant. One instance per queue;
    drops idle tenants."""

    def __init__(self, over_share: float = OVER_SHARE, fade_s: float = FADE_S) -> None:
        self._over_share = over_share
        self._fade_s = fade_s
        self.now = 0.0
        self._last_finish: dict[str, float] = {}
        self._forget_at = 64
        #: Work by tenant, scaled to its value at ``_since_s``.
        self._usage: dict[str, float] = {}
        self._total = 0.0
        self._since_s = 0.0

    def stamp(self, tenant_id: str, work: float, weight: float) -> float:
        """Return the virtual finish time of a request that arrives now."""
        start = max(self.now, self._last_finish.get(tenant_id, 0.0))
        finish = start + work / weight
        self._last_finish[tenant_id] = finish
        return finish

    def is_over_share(
        self, tenant_id: str, weight: float, waiting: float, all_waiting: float, now_s: float
    ) -> bool:
        """Return whether the tenant is over its share, counting its queued work (``waiting`` of
        ``all_waiting``) as usage."""
        scale = self._usage_scale(now_s)
        own = self._usage.get(tenant_id, 0.0) / scale + waiting
        total = self._total / scale + all_waiting
        if total - own < _MIN_OTHERS_SHARE * total:
            return False
        return own / weight > self._over_share * total

    def charge(self, tenant_id: str, work: float, weight: float) -> None:
        """Charge work beyond a request's estimate: it delays the tenant's later requests."""
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
        """Record that a request starts, and advance virtual time to its finish time, but not beyond
        ``least_waiting``: when the last request of a backlog starts first, new arrivals must not
        queue behind the whole backlog."""
        self.now = max(self.now, min(virtual_finish, least_waiting))
        if len(self._last_finish) > self._forget_at:
            self._last_finish = {t: f for t, f in self._last_finish.items() if f > self.now}
            self._forget_at = max(64, 2 * len(self._last_finish))
        usage = work * self._usage_scale(now_s)
        self._usage[tenant_id] = self._usage.get(tenant_id, 0.0) + usage
        self._total += usage

    def _usage_scale(self, now_s: float) -> float:
        """Return how much more work done now counts than work done at ``_since_s``."""
        if now_s - self._since_s > 20 * self._fade_s:
            faded = math.exp((self._since_s - now_s) / self._fade_s)
            least = 1e-6 * self._total
            self._usage = {
                t: usage * faded for t, usage in self._usage.items() if usage * faded > least
            }
            self._total = sum(self._usage.values())
            self._since_s = now_s
        return math.exp((now_s - self._since_s) / self._fade_s)
