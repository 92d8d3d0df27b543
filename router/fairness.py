"""Weighted-fair order by tenant: start-time fair queueing on work.

Each request gets a virtual finish time: its tenant's previous one (or the queue's
virtual time, if the tenant was idle) plus work / weight. Served in that order, two
tenants that both wait get work in proportion to their weights, and one that was
idle saves up nothing. Goyal, Vin and Cheng, SIGCOMM 1996.
"""

from __future__ import annotations


class FairClock:
    """The queue's virtual time. One instance a queue; forgets tenants that fall idle."""

    def __init__(self) -> None:
        self._now = 0.0
        self._last_finish: dict[str, float] = {}

    def stamp(self, tenant_id: str, work: float, weight: float) -> float:
        """The virtual finish time of a request that arrives now."""
        start = max(self._now, self._last_finish.get(tenant_id, 0.0))
        finish = start + work / weight
        self._last_finish[tenant_id] = finish
        return finish

    def served(self, virtual_finish: float) -> None:
        """A request of this stamp starts: virtual time moves on."""
        self._now = max(self._now, virtual_finish)
        self._last_finish = {t: f for t, f in self._last_finish.items() if f > self._now}
