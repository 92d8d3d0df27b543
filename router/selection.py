"""Which queued request starts next, and where."""

from __future__ import annotations

from dataclasses import dataclass

from cachetools import LRUCache

from router.cost import Speeds, cost_s
from router.demand import Demand
from router.displacement import Displacement
from router.fleet import Fleet
from router.policy import SchedulingPolicy
from router.queue import Queue
from router.replica import Replica
from router.request import QueuedRequest, QueuePosition

_MAX_TRACKED = 10_000

Choice = tuple[QueuedRequest, Replica]


@dataclass(frozen=True, slots=True)
class _PlannedPlacement:
    """A wait for the cheapest replica, until it changes or another becomes cheaper."""

    request_id: str
    replica_id: str
    version: int
    done_s: float


class Selection:
    """Chooses from the queue and the fleet; takes note of the fleet's changes."""

    def __init__(
        self,
        fleet: Fleet,
        queue: Queue,
        demand: Demand,
        displacement: Displacement,
        policy: SchedulingPolicy,
    ) -> None:
        self._fleet = fleet
        self._queue = queue
        self._demand = demand
        self._displacement = displacement
        self._policy = policy
        self._plans: dict[str, _PlannedPlacement] = {}  # by checkpoint
        #: Backlogs that needed no further replica: size, time of the next check.
        self._overflow_checks: LRUCache[str, tuple[int, float]] = LRUCache(_MAX_TRACKED)

    def next(self, speeds: Speeds, now_s: float) -> Choice | None:
        """Return the next choice. "Open": with a free slot. "Warm": holding the checkpoint.

        1. Overdue: the first request in fair order, if it has waited long enough.
        2. Warm: the first request with an open warm replica, within the overtaking limit.
        3. Cheapest: the first request whose cheapest replica is open.
        4. Overflow: a backlog's last request, if another replica loads faster than it drains.
        """
        heads = sorted((group[0][0], name) for name, group in self._queue.groups.items())
        self._drop_outdated_plans(speeds, now_s)
        first = self._queue.first(heads[0][1])
        if self._is_overdue(first, now_s):
            choice = self._pick_cheapest(first, speeds, now_s)
            if choice is not None and self._batch_is_done(choice[1], first):
                return choice
        limit = self._overtaking_limit(first, speeds)
        warm = {name for _, name in heads if self._fleet.has_open(name)}
        for position, name in heads:
            if name in warm and position <= limit:
                choice = self._pick_warm(name, speeds, now_s)
                if choice is not None:
                    return choice
        for _, name in heads:
            choice = self._pick_warm(name, speeds, now_s) if name in warm else None
            choice = choice or self._pick_cheapest(self._queue.first(name), speeds, now_s)
            if choice is not None:
                return choice
        for _, name in heads:
            choice = self._pick_overflow(name, speeds, now_s)
            if choice is not None:
                return choice
        return None

    def _overtaking_limit(self, first: QueuedRequest, speeds: Speeds) -> QueuePosition:
        is_deprioritized, finish = first.position
        return is_deprioritized, finish + self._policy.lead_s * speeds.work_per_s

    def _is_overdue(self, request: QueuedRequest, now_s: float) -> bool:
        waited_s = now_s - request.arrived_s
        load_s = self._demand.load_s(request.group)
        patience_s = max(self._policy.overdue_min_s, self._policy.overdue_loads * load_s)
        # A tight deadline: overdue after half of it.
        return waited_s >= min(patience_s, request.time_s / 2)

    def _batch_is_done(self, replica: Replica, request: QueuedRequest) -> bool:
        if request.group in replica.models:
            return True
        if not any(key in self._queue.groups for key in replica.models):
            return True
        least_s = self._policy.min_batch_loads * self._demand.load_s(request.group)
        return replica.batch_s >= least_s

    def _pick_warm(self, group: str, speeds: Speeds, now_s: float) -> Choice | None:
        """Pick, of the first few, the request with the least to fetch on an open warm replica.

        A deprioritized request must not delay others: it gets only an idle replica.
        """
        first = self._queue.first(group)
        candidates = [first]
        extras_s = speeds.at_most_s(first.extras)
        patience_s = max(self._policy.overdue_min_s, self._policy.overdue_loads * extras_s)
        if extras_s and now_s - first.arrived_s < patience_s:
            limit = self._overtaking_limit(first, speeds)
            head = self._queue.few(group, self._policy.overtaking)
            candidates += [r for r in head[1:] if r.position <= limit]
        best: tuple[float, Choice] | None = None
        for request in candidates:
            cheapest = self._fleet.cheapest(
                request, speeds, now_s, self._displacement.cost_s,
                open_only=True, warm_only=True, idle_only=request.is_deprioritized,
            )  # fmt: skip
            if cheapest is None or cheapest[1].id in request.avoid:
                continue
            fetch_s = speeds.fetch_s(request.extras, cheapest[1])
            if best is None or fetch_s < best[0]:
                best = fetch_s, (request, cheapest[1])
            if not fetch_s:
                break
        return None if best is None else best[1]

    def _pick_cheapest(self, request: QueuedRequest, speeds: Speeds, now_s: float) -> Choice | None:
        plan = self._plans.get(request.group)
        if plan is not None and plan.request_id == request.id:
            planned = self._fleet.replicas.get(plan.replica_id)
            if planned is not None and planned.version == plan.version:
                return None
        displacement = self._displacement
        displacement_s = (
            displacement.penalized_s if request.is_deprioritized else displacement.cost_s
        )
        cheapest = self._fleet.cheapest(request, speeds, now_s, displacement_s)
        if cheapest is None:
            return None
        cost, replica = cheapest
        if replica.has_capacity and not (request.is_deprioritized and replica.running):
            return request, replica
        self._plans[request.group] = _PlannedPlacement(
            request.id, replica.id, replica.version, now_s + cost
        )
        return None

    def _drop_outdated_plans(self, speeds: Speeds, now_s: float) -> None:
        changed, self._fleet.changed = dict.fromkeys(self._fleet.changed), []
        for group, plan in list(self._plans.items()):
            request = self._queue.get(plan.request_id)
            if request is None:
                del self._plans[group]
                continue
            left_s = plan.done_s - now_s
            if left_s <= request.work / speeds.work_per_s:
                continue  # no replica beats the bare generation
            for replica_id in changed:
                replica = self._fleet.replicas.get(replica_id)
                if replica is not None and replica.has_capacity:
                    cost = cost_s(request, replica, speeds, now_s)
                    if (
                        cost < left_s
                        and cost + self._displacement.by_s(request, replica, now_s) < left_s
                    ):
                        del self._plans[group]
                        break

    def _pick_overflow(self, group: str, speeds: Speeds, now_s: float) -> Choice | None:
        holders = len(self._fleet.holders(group))
        backlog, last = self._queue.backlog(group)
        generation_s = last.work / speeds.work_per_s
        drained_s = backlog * generation_s / max(1, holders)
        load_s = self._demand.load_s(group)
        if not holders or drained_s <= load_s + generation_s:
            return None
        checked_backlog, next_check_s = self._overflow_checks.get(group, (0, 0.0))
        if backlog <= checked_backlog and now_s < next_check_s:
            return None
        displacement = self._displacement
        cold = self._fleet.cheapest(
            last, speeds, now_s,
            displacement.penalized_s if last.is_deprioritized else displacement.cost_s,
            open_only=True, idle_only=last.is_deprioritized,
        )  # fmt: skip
        if cold is None or cold[0] >= drained_s:
            self._overflow_checks[group] = backlog, now_s + load_s / 4
            return None
        return last, cold[1]
