"""The scheduler of one pool: assigns queued requests to replicas.

No clock, no I/O. Call :meth:`Scheduler.assign` after every change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from cachetools import LRUCache

from assets.content import Blob
from router.admission import Admission, QueueLimits, admission
from router.cost import Speeds, cost_s
from router.fairness import FairClock
from router.fleet import Fleet
from router.popularity import Popularity
from router.prefetch import Prefetcher
from router.queue import Queue
from router.replica import Replica
from router.request import QueuedRequest, QueuePosition


@dataclass(frozen=True, slots=True)
class SchedulingPolicy:
    """The trade-off between throughput and fairness.

    A request that needs no loading may overtake one that does, until that is overdue: it has waited
    ``overdue_min_s`` and ``overdue_loads`` times its load time. A tenant gets at most ``lead_s`` of
    work ahead of its fair share.
    """

    overdue_min_s: float = 2.0
    overdue_loads: float = 4.0
    lead_s: float = 30.0
    #: In load times: how long a replica keeps a checkpoint while overdue requests need another.
    min_batch_loads: float = 4.0
    #: Of a deprioritized request.
    displacement_penalty: float = 4.0
    #: Of this many first requests of a checkpoint, those with resident LoRAs go first.
    overtaking: int = 8
    #: In load times: fade time and horizon of checkpoint popularity.
    fade_loads: float = 24.0
    horizon_loads: float = 12.0


@dataclass(frozen=True, slots=True)
class Assignment:
    """A request to start on a replica; ``cost_s`` is its expected duration from now."""

    request: QueuedRequest
    replica_id: str
    cost_s: float


_MAX_TRACKED = 10_000
_POPULAR_S = 3600.0

_Choice = tuple[QueuedRequest, Replica, float]


@dataclass(frozen=True, slots=True)
class _PlannedPlacement:
    """A wait for the cheapest replica, until it changes or another becomes cheaper."""

    request_id: str
    replica_id: str
    version: int
    done_s: float


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
        self.policy = policy or SchedulingPolicy()
        self.fleet = Fleet()
        self.queue = Queue()
        self.prefetcher = Prefetcher()
        self._fair = FairClock()
        #: Short-term; its fade time follows the load time.
        self._recent_checkpoints = Popularity(60.0)
        #: Long-term; extras are LoRAs and inversions.
        self._popular_checkpoints = Popularity(_POPULAR_S)
        self._popular_extras = Popularity(_POPULAR_S)
        #: By checkpoint or extra.
        self._blobs: LRUCache[str, tuple[Blob, ...]] = LRUCache(_MAX_TRACKED)
        self._plans: dict[str, _PlannedPlacement] = {}  # by checkpoint
        #: Backlogs that needed no further replica: size, time of the next check.
        self._overflow_checks: LRUCache[str, tuple[int, float]] = LRUCache(_MAX_TRACKED)
        self._values: dict[str, float] = {}  # cleared at every change
        #: From the store, by checkpoint.
        self._load_s: LRUCache[str, float] = LRUCache(_MAX_TRACKED)

    def __repr__(self) -> str:
        return (
            f"<Scheduler: {len(self.queue)} requests queued for {len(self.queue.groups)} "
            f"checkpoints; {self.fleet.open_count} of {len(self.fleet)} replicas have a free slot>"
        )

    def arrive(self, request: QueuedRequest, now_s: float) -> Admission:
        """Queue the request unless it is refused; the caller answers a displaced one."""
        waiting = self.queue.work_by_tenant().get(request.tenant_id, 0.0) + request.work
        is_deprioritized = self._fair.is_over_share(
            request.tenant_id, request.weight, waiting, self.queue.work + request.work, now_s
        )
        request = replace(request, position=(is_deprioritized, inf))
        admitted = admission(request, self.queue, self.fleet, self.speeds, self.limits, now_s)
        if admitted.refusal is not None:
            return admitted
        if admitted.displaced is not None:
            self.queue.withdraw(admitted.displaced[0].id)
        stamp = self._fair.stamp(request.tenant_id, request.work, request.weight)
        self._load_s[request.group] = load_s = self.speeds.at_most_s(request.model)
        self._recent_checkpoints.fade_s = max(1.0, self.policy.fade_loads * load_s)
        self._recent_checkpoints.record(request.group, now_s)
        self._popular_checkpoints.record(request.group, now_s)
        self._blobs[request.group] = tuple(request.model)
        for blob in request.extras:
            self._popular_extras.record(blob.key, now_s)
            self._blobs[blob.key] = (blob,)
        position = self._position_by_priority(request, (is_deprioritized, stamp))
        self.queue.add(replace(request, position=position))
        return admitted

    def _position_by_priority(self, request: QueuedRequest, stamp: QueuePosition) -> QueuePosition:
        """Return its position; its tenant's requests of lower priority move back by one each."""
        lower = [r for r in self.queue.of(request.tenant_id) if r.priority < request.priority]
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
        cheapest = self.fleet.cheapest(request, self.speeds, now_s, self._displacement_s)
        if cheapest is None:
            return None
        replica = cheapest[1]
        distant = [blob for blob in chosen if replica.tier_of(blob.key) in ("disk", "store")]
        return Promotion(replica.id, tuple(dict.fromkeys(distant))) if distant else None

    def popular(self, count: int, now_s: float) -> list[str]:
        """Return the keys of the most requested extras."""
        return self._popular_extras.most(count, now_s)

    def most_popular(self, count: int, now_s: float) -> list[Blob]:
        """Return the blobs of the two most requested checkpoints and of ``count`` extras."""
        keys = [*self._popular_checkpoints.most(2, now_s), *self._popular_extras.most(count, now_s)]
        return list(dict.fromkeys(blob for key in keys for blob in self._blobs.get(key, ())))

    def value_s(self, replica_id: str, now_s: float) -> float:
        """Return the expected seconds of reloading if the replica is stopped."""
        replica = self.fleet.replicas.get(replica_id)
        if replica is None:
            return 0.0
        return sum(
            self._load_s.get(key, 0.0)
            * self._popular_checkpoints.within(key, _POPULAR_S / 6, now_s)
            / max(1, len(self.fleet.holders(key)))
            for key in replica.models
        )

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
        self._values.clear()
        if not self.queue.groups:
            self.fleet.changed.clear()
        while self.fleet.open_count and self.queue.groups:
            choice = self._next(now_s)
            if choice is None:
                break
            assignments.append(self._assign_to(*choice, now_s))
            self._values.clear()
        return assignments

    def _next(self, now_s: float) -> _Choice | None:
        """Return the next choice. "Open": with a free slot. "Warm": holding the checkpoint.

        1. Overdue: the first request in fair order, if it has waited long enough.
        2. Warm: the first request with an open warm replica, within the overtaking limit.
        3. Cheapest: the first request whose cheapest replica is open.
        4. Overflow: a backlog's last request, if another replica loads faster than it drains.
        """
        heads = sorted((group[0][0], name) for name, group in self.queue.groups.items())
        self._drop_outdated_plans(now_s)
        first = self.queue.first(heads[0][1])
        if self._is_overdue(first, now_s):
            choice = self._pick_cheapest(first, now_s)
            if choice is not None and self._batch_is_done(choice[1], first):
                return choice
        limit = self._overtaking_limit(first)
        warm = {name for _, name in heads if self.fleet.has_open(name)}
        for position, name in heads:
            if name in warm and position <= limit:
                choice = self._pick_warm(name, now_s)
                if choice is not None:
                    return choice
        for _, name in heads:
            choice = self._pick_warm(name, now_s) if name in warm else None
            choice = choice or self._pick_cheapest(self.queue.first(name), now_s)
            if choice is not None:
                return choice
        for _, name in heads:
            choice = self._pick_overflow(name, now_s)
            if choice is not None:
                return choice
        return None

    def _overtaking_limit(self, first: QueuedRequest) -> QueuePosition:
        is_deprioritized, finish = first.position
        return is_deprioritized, finish + self.policy.lead_s * self.speeds.work_per_s

    def _is_overdue(self, request: QueuedRequest, now_s: float) -> bool:
        waited_s = now_s - request.arrived_s
        load_s = self._load_s[request.group]
        patience_s = max(self.policy.overdue_min_s, self.policy.overdue_loads * load_s)
        # A tight deadline: overdue after half of it.
        return waited_s >= min(patience_s, request.time_s / 2)

    def _batch_is_done(self, replica: Replica, request: QueuedRequest) -> bool:
        if request.group in replica.models:
            return True
        if not any(key in self.queue.groups for key in replica.models):
            return True
        return replica.batch_s >= self.policy.min_batch_loads * self._load_s[request.group]

    def _pick_warm(self, group: str, now_s: float) -> _Choice | None:
        """Pick, of the first few, the request with the least to fetch on an open warm replica.

        A deprioritized request must not delay others: it gets only an idle replica.
        """
        first = self.queue.first(group)
        candidates = [first]
        extras_s = self.speeds.at_most_s(first.extras)
        patience_s = max(self.policy.overdue_min_s, self.policy.overdue_loads * extras_s)
        if extras_s and now_s - first.arrived_s < patience_s:
            limit = self._overtaking_limit(first)
            head = self.queue.few(group, self.policy.overtaking)
            candidates += [r for r in head[1:] if r.position <= limit]
        best: tuple[float, _Choice] | None = None
        for request in candidates:
            cheapest = self.fleet.cheapest(
                request, self.speeds, now_s, self._displacement_s,
                open_only=True, warm_only=True, idle_only=request.is_deprioritized,
            )  # fmt: skip
            if cheapest is None or cheapest[1].id in request.avoid:
                continue
            fetch_s = self.speeds.fetch_s(request.extras, cheapest[1])
            if best is None or fetch_s < best[0]:
                best = fetch_s, (request, cheapest[1], cheapest[0])
            if not fetch_s:
                break
        return None if best is None else best[1]

    def _pick_cheapest(self, request: QueuedRequest, now_s: float) -> _Choice | None:
        plan = self._plans.get(request.group)
        if plan is not None and plan.request_id == request.id:
            planned = self.fleet.replicas.get(plan.replica_id)
            if planned is not None and planned.version == plan.version:
                return None
        displacement_s = (
            self._penalized_displacement_s if request.is_deprioritized else self._displacement_s
        )
        cheapest = self.fleet.cheapest(request, self.speeds, now_s, displacement_s)
        if cheapest is None:
            return None
        cost, replica = cheapest
        if replica.has_capacity and not (request.is_deprioritized and replica.running):
            return request, replica, cost
        self._plans[request.group] = _PlannedPlacement(
            request.id, replica.id, replica.version, now_s + cost
        )
        return None

    def _drop_outdated_plans(self, now_s: float) -> None:
        changed, self.fleet.changed = dict.fromkeys(self.fleet.changed), []
        for group, plan in list(self._plans.items()):
            request = self.queue.get(plan.request_id)
            if request is None:
                del self._plans[group]
                continue
            left_s = plan.done_s - now_s
            if left_s <= request.work / self.speeds.work_per_s:
                continue  # no replica beats the bare generation
            for replica_id in changed:
                replica = self.fleet.replicas.get(replica_id)
                if replica is not None and replica.has_capacity:
                    cost = cost_s(request, replica, self.speeds, now_s)
                    if (
                        cost < left_s
                        and cost + self._displacement_of(request, replica, now_s) < left_s
                    ):
                        del self._plans[group]
                        break

    def _pick_overflow(self, group: str, now_s: float) -> _Choice | None:
        holders = len(self.fleet.holders(group))
        backlog, last = self.queue.backlog(group)
        generation_s = last.work / self.speeds.work_per_s
        drained_s = backlog * generation_s / max(1, holders)
        load_s = self._load_s[group]
        if not holders or drained_s <= load_s + generation_s:
            return None
        checked_backlog, next_check_s = self._overflow_checks.get(group, (0, 0.0))
        if backlog <= checked_backlog and now_s < next_check_s:
            return None
        cold = self.fleet.cheapest(
            last, self.speeds, now_s,
            self._penalized_displacement_s if last.is_deprioritized else self._displacement_s,
            open_only=True, idle_only=last.is_deprioritized,
        )  # fmt: skip
        if cold is None or cold[0] >= drained_s:
            self._overflow_checks[group] = backlog, now_s + load_s / 4
            return None
        return last, cold[1], cold[0]

    def _displacement_s(self, replica: Replica, now_s: float) -> float:
        if len(replica.models) < replica.checkpoint_capacity:
            return 0.0
        return min(self._value_of(key, now_s) for key in replica.models)

    def _penalized_displacement_s(self, replica: Replica, now_s: float) -> float:
        return self.policy.displacement_penalty * self._displacement_s(replica, now_s)

    def _displacement_of(self, request: QueuedRequest, replica: Replica, now_s: float) -> float:
        return 0.0 if request.group in replica.models else self._displacement_s(replica, now_s)

    def _value_of(self, key: str, now_s: float) -> float:
        """Return the value in seconds: load time / holders × probability of use."""
        value = self._values.get(key)
        if value is None:
            load_s = self._load_s.get(key, 0.0)
            value = load_s / max(1, len(self.fleet.holders(key)))
            if key not in self.queue.groups:
                horizon_s = self.policy.horizon_loads * load_s
                value *= self._recent_checkpoints.within(key, horizon_s, now_s)
            self._values[key] = value
        return value

    def _assign_to(
        self, request: QueuedRequest, replica: Replica, _: float, now_s: float
    ) -> Assignment:
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
