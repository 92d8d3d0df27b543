"""The waiting room: what waits, where it could be drawn, and who goes next.

Everything the dispatcher knows, without its calls: the same object decides in a replay under a
virtual clock. Mutable; no clock and no I/O of its own. :meth:`WaitingRoom.assign` is to
be called after every change.
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
    """How far the cheap may go before the fair.

    A request that a replica can draw at once may overtake one for which something must be
    loaded first, until that one has waited ``loads`` times as long as its loading takes
    (and ``least_s`` at least); and never by more than ``lead_s`` of its tenant's share.
    """

    least_s: float = 2.0
    loads: float = 4.0
    lead_s: float = 30.0
    #: How long a replica draws with what it has loaded while others wait for their turn.
    min_batch_loads: float = 4.0
    #: How much more a checkpoint is worth when a request that steps back would displace it.
    displacement_penalty: float = 4.0
    #: Of so many at the head of a crowd the one goes first whose LoRAs are there.
    overtaking: int = 8
    #: Over which time demand is remembered, and how far ahead it is believed, in loads.
    fade_loads: float = 24.0
    ahead_loads: float = 12.0


@dataclass(frozen=True, slots=True)
class Assignment:
    request: QueuedRequest
    replica_id: str
    cost_s: float


#: Checkpoints, far more than ever wait at a time.
_REMEMBERED = 10_000
#: What was asked for within the hour or so counts as popular.
_POPULAR_S = 3600.0

#: A request, where it goes, and what that costs.
_Choice = tuple[QueuedRequest, Replica, float]


@dataclass(frozen=True, slots=True)
class _PlannedPlacement:
    """The first of a crowd waits for a replica that has no slot now: it is the cheapest, and
    stays so until it, or one that gets free, has changed."""

    request_id: str
    replica_id: str
    version: int
    done_s: float


@dataclass(frozen=True, slots=True)
class Promotion:
    """What to bring up to host RAM on the node of a replica."""

    replica_id: str
    blobs: tuple[Blob, ...]


class Scheduler:
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
        self._demand = Popularity(60.0)  # for checkpoints, by what replicas can do
        self._popular = Popularity(_POPULAR_S)  # for what comes on top, by what users do
        self._lasting = Popularity(_POPULAR_S)  # for checkpoints again, beyond the moment
        #: What the keys of both stand for.
        self._blobs: LRUCache[str, tuple[Blob, ...]] = LRUCache(_REMEMBERED)
        self._plans: dict[str, _PlannedPlacement] = {}  # by checkpoint
        #: Crowds that were better left where they are: how large, and when to look again.
        self._backlogs: LRUCache[str, tuple[int, float]] = LRUCache(_REMEMBERED)
        self._values: dict[str, float] = {}  # for as long as nothing changes
        #: What each checkpoint takes to load from the store.
        self._load_s: LRUCache[str, float] = LRUCache(_REMEMBERED)

    def __repr__(self) -> str:
        return (
            f"<WaitingRoom {len(self.queue)} waiting for {len(self.queue.groups)} checkpoints; "
            f"{self.fleet.open_count} of {len(self.fleet)} replicas have a slot>"
        )

    # Requests come and go

    def arrive(self, request: QueuedRequest, now_s: float) -> Admission:
        """Queue the request unless it is refused; withdraw the one that it displaces."""
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
        self._demand.fade_s = max(1.0, self.policy.fade_loads * load_s)
        self._demand.asked(request.group, now_s)
        self._lasting.asked(request.group, now_s)
        self._blobs[request.group] = tuple(request.model)
        for blob in request.extras:
            self._popular.asked(blob.key, now_s)
            self._blobs[blob.key] = (blob,)
        position = self._before_lesser(request, (is_deprioritized, stamp))
        self.queue.add(replace(request, position=position))
        return admitted

    def _before_lesser(self, request: QueuedRequest, stamp: QueuePosition) -> QueuePosition:
        """The place of a request among its tenant's own: those of lower priority move back by
        one, and other tenants notice nothing."""
        lesser = [r for r in self.queue.of(request.tenant_id) if r.priority < request.priority]
        if not lesser:
            return stamp
        positions = sorted([r.position for r in lesser] + [stamp])
        for other, position in zip(
            sorted(lesser, key=lambda r: r.position), positions[1:], strict=True
        ):
            self.queue.move(other.id, position)
        return positions[0]

    def promote(self, request: QueuedRequest, now_s: float) -> Promotion | None:
        """To be asked as a request arrives: what should be brought near already, and where. It
        is the request's own assets if it must wait, and what its tenant had the last time."""
        guesses = self.prefetcher.asked(request.tenant_id, request.extras, now_s)
        wanted = [*request.blobs, *guesses] if request.id in self.queue else guesses
        if not wanted:
            return None
        found = self.fleet.cheapest(request, self.speeds, now_s, self._displacement_s)
        if found is None:
            return None
        replica = found[1]
        distant = [blob for blob in wanted if replica.tier_of(blob.key) in ("disk", "store")]
        return Promotion(replica.id, tuple(dict.fromkeys(distant))) if distant else None

    def popular(self, count: int, now_s: float) -> list[str]:
        """The content keys most asked for lately."""
        return self._popular.most(count, now_s)

    def most_wanted(self, count: int, now_s: float) -> list[Blob]:
        """What a new replica is likely to need: the checkpoints that are asked for and the
        ``count`` most popular of what comes on top."""
        keys = [*self._lasting.most(2, now_s), *self._popular.most(count, now_s)]
        return list(dict.fromkeys(blob for key in keys for blob in self._blobs.get(key, ())))

    def value_s(self, replica_id: str, now_s: float) -> float:
        """Seconds of loading that would be lost with the replica, by what is asked for within
        minutes and what others hold too."""
        replica = self.fleet.replicas.get(replica_id)
        if replica is None:
            return 0.0
        return sum(
            self._load_s.get(key, 0.0)
            * self._lasting.within(key, _POPULAR_S / 6, now_s)
            / max(1, len(self.fleet.holders(key)))
            for key in replica.models
        )

    def requeue(self, request: QueuedRequest) -> None:
        """One that was taken and lost waits again, at its old place."""
        self.queue.add(request)

    def charge_overrun(self, request: QueuedRequest, engine_s: float) -> None:
        """What an attempt took beyond its work comes out of its tenant's share."""
        beyond = engine_s * self.speeds.work_per_s - request.work
        if self.speeds.is_measured and beyond > 0:
            self._fair.charge(request.tenant_id, beyond, request.weight)

    def ended(self, assignment: Assignment, now_s: float) -> None:
        """An assignment is over, however it ended; its replica may be gone."""
        request = assignment.request
        self.queue.release(request)
        replica = self.fleet.replicas.get(assignment.replica_id)
        if replica is not None:
            left = sum(r.work for r in replica.running.values() if r.id != request.id)
            free_at_s = now_s + left / self.speeds.work_per_s
            self.fleet.ended(replica.id, request.id, free_at_s)

    # Who goes next, and where

    def assign(self, now_s: float) -> list[Assignment]:
        """Everything that should start now; it is taken from the queue."""
        made: list[Assignment] = []
        self._values.clear()
        if not self.queue.groups:
            self.fleet.changed.clear()
        while self.fleet.open_count and self.queue.groups:
            following = self._next(now_s)
            if following is None:
                break
            made.append(self._assign_to(*following, now_s))
            self._values.clear()
        return made

    def _next(self, now_s: float) -> _Choice | None:
        """The request that goes first of all, if there is one that should go now.

        1. The first in fair order that has waited long enough.
        2. The first of those that an open replica has the checkpoint for, if it does not get too
           far ahead of the very first.
        3. The first of all whose cheapest replica is an open one: to wait for a warm and
           busy one would take longer than loading.
        4. The last of a crowd that its warm replicas will not have drawn by then.
        """
        heads = sorted((group[0][0], name) for name, group in self.queue.groups.items())
        self._drop_outdated_plans(now_s)
        first = self.queue.first(heads[0][1])
        if self._is_overdue(first, now_s):
            choice = self._pick_cheapest(first, now_s)
            if choice is not None and self._batch_is_done(choice[1], first):
                return choice
        limit = self._limit(first)
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

    def _limit(self, first: QueuedRequest) -> QueuePosition:
        """The last place that may overtake."""
        is_deprioritized, finish = first.position
        return is_deprioritized, finish + self.policy.lead_s * self.speeds.work_per_s

    def _is_overdue(self, request: QueuedRequest, now_s: float) -> bool:
        waited_s = now_s - request.arrived_s
        load_s = self._load_s[request.group]
        patience_s = max(self.policy.least_s, self.policy.loads * load_s)
        # Whoever is in a hurry has no more patience than half of the time that there is.
        return waited_s >= min(patience_s, request.time_s / 2)

    def _batch_is_done(self, replica: Replica, request: QueuedRequest) -> bool:
        """Whether the replica has drawn enough with what it has to load something else."""
        if request.group in replica.models:
            return True
        if not any(key in self.queue.groups for key in replica.models):
            return True
        return replica.batch_s >= self.policy.min_batch_loads * self._load_s[request.group]

    def _pick_warm(self, group: str, now_s: float) -> _Choice | None:
        """On an open replica that has its checkpoint: of the first few the one whose LoRAs are
        there too, unless the very first has waited for long enough. Who steps back takes one
        that is idle, and does not stand in line where others will want to be in a moment."""
        first = self.queue.first(group)
        candidates = [first]
        extras_s = self.speeds.at_most_s(first.extras)
        patient_s = max(self.policy.least_s, self.policy.loads * extras_s)
        if extras_s and now_s - first.arrived_s < patient_s:
            limit = self._limit(first)
            few = self.queue.few(group, self.policy.overtaking)
            candidates += [r for r in few[1:] if r.position <= limit]
        best: tuple[float, _Choice] | None = None
        for request in candidates:
            found = self.fleet.cheapest(
                request, self.speeds, now_s, self._displacement_s,
                open_only=True, warm_only=True, idle_only=request.is_deprioritized,
            )  # fmt: skip
            if found is None or found[1].id in request.avoid:
                continue
            fetch_s = self.speeds.fetch_s(request.extras, found[1])
            if best is None or fetch_s < best[0]:
                best = fetch_s, (request, found[1], found[0])
            if not fetch_s:
                break
        return None if best is None else best[1]

    def _pick_cheapest(self, request: QueuedRequest, now_s: float) -> _Choice | None:
        """Where it costs least, if there is a slot now; else that is where it waits to go."""
        plan = self._plans.get(request.group)
        if plan is not None and plan.request_id == request.id:
            home = self.fleet.replicas.get(plan.replica_id)
            if home is not None and home.version == plan.version:
                return None
        displacement_s = (
            self._penalized_displacement_s if request.is_deprioritized else self._displacement_s
        )
        found = self.fleet.cheapest(request, self.speeds, now_s, displacement_s)
        if found is None:
            return None
        cost, replica = found
        if replica.has_capacity and not (request.is_deprioritized and replica.running):
            return request, replica, cost
        self._plans[request.group] = _PlannedPlacement(
            request.id, replica.id, replica.version, now_s + cost
        )
        return None

    def _drop_outdated_plans(self, now_s: float) -> None:
        """A replica that has changed may be better than the one that is waited for."""
        changed, self.fleet.changed = dict.fromkeys(self.fleet.changed), []
        for group, plan in list(self._plans.items()):
            request = self.queue.get(plan.request_id)
            if request is None:
                del self._plans[group]
                continue
            left_s = plan.done_s - now_s
            if left_s <= request.work / self.speeds.work_per_s:
                continue  # it will not be better than that anywhere
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
        seen, again_s = self._backlogs.get(group, (0, 0.0))
        if backlog <= seen and now_s < again_s:
            return None
        cold = self.fleet.cheapest(
            last, self.speeds, now_s,
            self._penalized_displacement_s if last.is_deprioritized else self._displacement_s,
            open_only=True, idle_only=last.is_deprioritized,
        )  # fmt: skip
        if cold is None or cold[0] >= drained_s:
            self._backlogs[group] = backlog, now_s + load_s / 4
            return None
        return last, cold[1], cold[0]

    def _displacement_s(self, replica: Replica, now_s: float) -> float:
        """What the checkpoint that the replica would give up for another is worth: how long it
        takes to load, if it is asked for soon and nobody else has it."""
        if len(replica.models) < replica.checkpoint_capacity:
            return 0.0
        return min(self._value_of(key, now_s) for key in replica.models)

    def _penalized_displacement_s(self, replica: Replica, now_s: float) -> float:
        """The same for a request that steps back: what others have loaded is not for it to take."""
        return self.policy.displacement_penalty * self._displacement_s(replica, now_s)

    def _displacement_of(self, request: QueuedRequest, replica: Replica, now_s: float) -> float:
        return 0.0 if request.group in replica.models else self._displacement_s(replica, now_s)

    def _value_of(self, key: str, now_s: float) -> float:
        known = self._values.get(key)
        if known is None:
            load_s = self._load_s.get(key, 0.0)
            known = load_s / max(1, len(self.fleet.holders(key)))
            if key not in self.queue.groups:
                known *= self._demand.within(key, self.policy.ahead_loads * load_s, now_s)
            self._values[key] = known
        return known

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
