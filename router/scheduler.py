"""The scheduler of one pool: assigns queued requests to replicas.

No clock, no I/O. Call :meth:`Scheduler.assign` after every change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from assets.content import Blob
from router.admission import Admission, QueueLimits, admission
from router.cost import Speeds, cost_s
from router.demand import Demand
from router.displacement import Displacement
from router.fairness import FairClock
from router.fleet import Fleet
from router.policy import SchedulingPolicy
from router.prefetch import Prefetcher
from router.queue import Queue
from router.replica import Replica
from router.request import QueuedRequest, QueuePosition
from router.selection import Selection


@dataclass(frozen=True, slots=True)
class Assignment:
    """A request to start on a replica; ``cost_s`` is its expected duration from now."""

    request: QueuedRequest
    replica_id: str
    cost_s: float


@dataclass(frozen=True, slots=True)
class Promotion:
    """Blobs to copy to host RAM on a replica's node."""

    replica_id: str
    blobs: tuple[Blob, ...]


class Scheduler:
    """Mutable; one instance per pool."""

    def __init__(
        self,
        speeds: Speeds | None = None,
        limits: QueueLimits | None = None,
        policy: SchedulingPolicy | None = None,
    ) -> None:
        self.speeds = speeds or Speeds()
        self.limits = limits or QueueLimits()
        policy = policy or SchedulingPolicy()
        self.fleet = Fleet()
        self.queue = Queue()
        self.prefetcher = Prefetcher()
        self.demand = Demand(policy)
        self.displacement = Displacement(self.fleet, self.queue, self.demand, policy)
        self._selection = Selection(self.fleet, self.queue, self.demand, self.displacement, policy)
        self._fair = FairClock()

    def __repr__(self) -> str:
        return (
            f"<Scheduler: {len(self.queue)} requests queued for {len(self.queue.groups)} "
            f"checkpoints; {self.fleet.open_count} of {len(self.fleet)} replicas have a free slot>"
        )

    def arrive(self, request: QueuedRequest, now_s: float) -> Admission:
        """Queue the request unless it is refused; the caller answers a displaced one."""
        waiting = self.queue.backlogs.work_by_tenant.get(request.tenant_id, 0.0) + request.work
        is_deprioritized = self._fair.is_over_share(
            request.tenant_id,
            request.weight,
            waiting,
            self.queue.backlogs.work + request.work,
            now_s,
        )
        request = replace(request, position=(is_deprioritized, inf))
        admitted = admission(request, self.queue, self.fleet, self.speeds, self.limits, now_s)
        if admitted.refusal is not None:
            return admitted
        if admitted.displaced is not None:
            self.queue.withdraw(admitted.displaced[0].id)
        stamp = self._fair.stamp(request.tenant_id, request.work, request.weight)
        self.demand.record(request, self.speeds, now_s)
        position = self._position_by_priority(request, (is_deprioritized, stamp))
        self.queue.add(replace(request, position=position))
        return admitted

    def _position_by_priority(self, request: QueuedRequest, stamp: QueuePosition) -> QueuePosition:
        """Return its position; its tenant's requests of lower priority move back by one each."""
        lower = [
            r for r in self.queue.backlogs.of(request.tenant_id) if r.priority < request.priority
        ]
        if not lower:
            return stamp
        positions = sorted([r.position for r in lower] + [stamp])
        for other, position in zip(
            sorted(lower, key=lambda r: r.position), positions[1:], strict=True
        ):
            self.queue.move(other.id, position)
        return positions[0]

    def promote(self, request: QueuedRequest, now_s: float) -> Promotion | None:
        """Return what to prefetch: the arrival's assets if queued, and predicted ones."""
        guesses = self.prefetcher.record_request(request.tenant_id, request.extras, now_s)
        chosen = [*request.blobs, *guesses] if request.id in self.queue else guesses
        if not chosen:
            return None
        cheapest = self.fleet.cheapest(request, self.speeds, now_s, self.displacement.cost_s)
        if cheapest is None:
            return None
        replica = cheapest[1]
        distant = [blob for blob in chosen if replica.tier_of(blob.key) in ("disk", "store")]
        return Promotion(replica.id, tuple(dict.fromkeys(distant))) if distant else None

    def requeue(self, request: QueuedRequest) -> None:
        """Queue a request that its replica lost, at its old position."""
        self.queue.add(request)

    def charge_overrun(self, request: QueuedRequest, engine_s: float) -> None:
        """Charge engine time beyond the estimated work."""
        beyond = engine_s * self.speeds.work_per_s - request.work
        if self.speeds.is_measured and beyond > 0:
            self._fair.charge(request.tenant_id, beyond, request.weight)

    def ended(self, assignment: Assignment, now_s: float) -> None:
        """Record the end of an assignment; its replica may be gone."""
        request = assignment.request
        self.queue.release(request)
        replica = self.fleet.replicas.get(assignment.replica_id)
        if replica is not None:
            left = sum(r.work for r in replica.running.values() if r.id != request.id)
            free_at_s = now_s + left / self.speeds.work_per_s
            self.fleet.ended(replica.id, request.id, free_at_s)

    def assign(self, now_s: float) -> list[Assignment]:
        """Take the requests that should start now."""
        assignments: list[Assignment] = []
        self.displacement.changed()
        if not self.queue.groups:
            self.fleet.changed.clear()
        while self.fleet.open_count and self.queue.groups:
            choice = self._selection.next(self.speeds, now_s)
            if choice is None:
                break
            assignments.append(self._assign_to(*choice, now_s))
            self.displacement.changed()
        return assignments

    def _assign_to(self, request: QueuedRequest, replica: Replica, now_s: float) -> Assignment:
        self.queue.take(request.id)
        loading = self.speeds.fetch_s(request.blobs, replica) * self.speeds.work_per_s
        backlog = self.queue.groups.get(request.group)
        was_last = backlog is not None and request.position >= backlog[-1][0]
        least = backlog[0][0][1] if backlog is not None and was_last else inf
        self._fair.served(
            request.tenant_id, request.position[1], request.work + loading, now_s, least
        )
        if loading:
            self._fair.charge(request.tenant_id, loading, request.weight)
        busy_s = cost_s(request, replica, self.speeds, now_s)
        generation_s = request.work / self.speeds.work_per_s
        self.fleet.sent(replica.id, request, now_s + busy_s, generation_s)
        return Assignment(request, replica.id, busy_s)
