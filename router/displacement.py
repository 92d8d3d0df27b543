"""What it costs others when a replica gives up a checkpoint, in seconds."""

from __future__ import annotations

from router.demand import Demand
from router.fleet import Fleet
from router.policy import SchedulingPolicy
from router.queue import Queue
from router.replica import Replica
from router.request import QueuedRequest


class Displacement:
    """Values are kept until :meth:`changed`."""

    def __init__(
        self, fleet: Fleet, queue: Queue, demand: Demand, policy: SchedulingPolicy
    ) -> None:
        self._fleet = fleet
        self._queue = queue
        self._demand = demand
        self._policy = policy
        self._values: dict[str, float] = {}

    def changed(self) -> None:
        """Forget the values: queue or fleet have changed."""
        self._values.clear()

    def cost_s(self, replica: Replica, now_s: float) -> float:
        if len(replica.models) < replica.checkpoint_capacity:
            return 0.0
        return min(self._value_s(key, now_s) for key in replica.models)

    def penalized_s(self, replica: Replica, now_s: float) -> float:
        """For a deprioritized request."""
        return self._policy.displacement_penalty * self.cost_s(replica, now_s)

    def by_s(self, request: QueuedRequest, replica: Replica, now_s: float) -> float:
        return 0.0 if request.group in replica.models else self.cost_s(replica, now_s)

    def stop_s(self, replica_id: str, now_s: float) -> float:
        """The expected seconds of reloading if the replica is stopped."""
        replica = self._fleet.replicas.get(replica_id)
        if replica is None:
            return 0.0
        return sum(
            self._demand.load_s(key)
            * self._demand.later(key, now_s)
            / max(1, len(self._fleet.holders(key)))
            for key in replica.models
        )

    def _value_s(self, key: str, now_s: float) -> float:
        """Load time / holders × probability of use."""
        value = self._values.get(key)
        if value is None:
            value = self._demand.load_s(key) / max(1, len(self._fleet.holders(key)))
            if key not in self._queue.groups:
                value *= self._demand.soon(key, now_s)
            self._values[key] = value
        return value
