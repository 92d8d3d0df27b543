"""Replay a trace with a routing policy under a virtual clock."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from assets.content import Blob
from benchmarks.replay import policies
from benchmarks.replay.replica import Hardware, SimulatedNode, SimulatedReplica
from benchmarks.replay.trace import TraceRequest
from router.admission import QueueLimits
from router.cost import Speeds
from router.policy import SchedulingPolicy
from router.request import QueuedRequest
from router.scheduler import Assignment, Scheduler

OURS = "ours"
#: Instant loading: the gap to the bound is due to reordering alone.
AT_ONCE = "ours, loads at once"
POLICIES: dict[str, Callable[[random.Random], policies.Choose]] = {
    "random": policies.random_choice,
    "round robin": lambda rng: policies.round_robin(),
    "least loaded": policies.least_loaded,
    "power of two": policies.power_of_two,
    "multiplexed": policies.multiplexed,
    "consistent hash": lambda rng: policies.consistent_hash(),
    "bounded hash": lambda rng: policies.consistent_hash(1.25),
}


@dataclass(slots=True)
class Outcome:
    """The results of a replay. ``latency_s`` is in trace order; NaN means not served."""

    policy: str
    hardware: Hardware
    latency_s: list[float]
    refused: int
    checkpoint_loads: int
    store_bytes: int
    span_s: float
    busy_s: list[float]  # by replica
    #: LoRAs by tenant: used, loaded to a device, fetched from the store.
    lora_uses: Counter[str]
    lora_loads: Counter[str]
    lora_fetches: Counter[str]


class _World:
    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.now_s = 0.0
        self._events: list[tuple[float, int, SimulatedReplica]] = []
        self._number = 0
        clock = lambda: self.now_s  # noqa: E731
        count = -(-hardware.replicas // hardware.replicas_per_node)
        self.nodes = [SimulatedNode(hardware, clock) for _ in range(count)]
        self.replicas = [
            SimulatedReplica(
                f"r{index}", self.nodes[index // hardware.replicas_per_node], hardware, clock,
                self._wake, lambda *done: self.done(*done),
            )
            for index in range(hardware.replicas)
        ]  # fmt: skip
        self.done: Callable[[SimulatedReplica, TraceRequest, object], None] = lambda *_: None

    def _wake(self, at_s: float, replica: SimulatedReplica) -> None:
        self._number += 1
        heapq.heappush(self._events, (at_s, self._number, replica))

    def run_until(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            at_s, _, replica = heapq.heappop(self._events)
            self.now_s = at_s
            replica.woken(at_s)
        self.now_s = max(self.now_s, until_s)

    def run_out(self) -> None:
        while self._events:
            self.run_until(self._events[0][0])


def replay(
    trace: Sequence[TraceRequest],
    policy: str,
    hardware: Hardware,
    seed: int = 0,
    scheduling: SchedulingPolicy | None = None,
    limits: QueueLimits | None = None,
    timeout_s: float = float("inf"),
) -> Outcome:
    """Replay ``trace``.

    Requests not done within ``timeout_s`` fail. Only the platform's own policy drops those from its
    queue and refuses requests.
    """
    world = _World(hardware)
    latency_s = [float("nan")] * len(trace)
    refused = 0

    if policy in (OURS, AT_ONCE):
        if policy == AT_ONCE:
            world = _World(hardware.that_loads_at_once())
        shell = _Ours(world, world.hardware, scheduling, limits)
        send = shell.arrive
    else:
        choose = POLICIES[policy](random.Random(seed))

        def send(index: int, request: TraceRequest, timeout_s: float) -> bool:
            choose(request, world.replicas).give(request, index)
            return True

    def done(replica: SimulatedReplica, request: TraceRequest, tag: object) -> None:
        index = tag.index if isinstance(tag, _Sent) else tag
        assert isinstance(index, int)
        latency = world.now_s - request.arrival_s
        if latency <= timeout_s:
            latency_s[index] = latency
        if isinstance(tag, _Sent):
            shell.done(replica, tag)

    world.done = done
    for index, request in enumerate(trace):
        world.run_until(request.arrival_s)
        refused += not send(index, request, timeout_s)
    world.run_out()
    if policy in (OURS, AT_ONCE):
        refused += shell.displaced
    return Outcome(
        policy,
        hardware,
        latency_s,
        refused,
        sum(r.checkpoint_loads for r in world.replicas),
        sum(n.from_store_bytes for n in world.nodes),
        world.now_s - trace[0].arrival_s,
        [r.busy_s for r in world.replicas],
        sum((r.lora_uses for r in world.replicas), Counter()),
        sum((r.lora_loads for r in world.replicas), Counter()),
        sum((n.loras_from_store for n in world.nodes), Counter()),
    )


@dataclass(frozen=True, slots=True)
class _Sent:
    index: int
    assignment: Assignment


class _Ours:
    def __init__(
        self,
        world: _World,
        hardware: Hardware,
        scheduling: SchedulingPolicy | None,
        limits: QueueLimits | None,
    ) -> None:
        self._world = world
        self._hardware = hardware
        work_per_s = 30 * 1024 * 1024 / hardware.picture_s
        speeds = Speeds(hardware.speeds(), work_per_s, hardware.swap_s)
        limits = limits or QueueLimits(10**9, 10**9)
        self.scheduler = Scheduler(speeds, limits, scheduling)
        self._blobs: dict[str, Blob] = {}
        self._requests: dict[int, TraceRequest] = {}
        self.displaced = 0
        self._deadlines: deque[tuple[float, int]] = deque()
        self._node_of: dict[str, str] = {}
        for at, replica in enumerate(world.replicas):
            node = f"n{at // hardware.replicas_per_node}"
            slots = hardware.checkpoint_slots
            self.scheduler.fleet.add(replica.name, node, checkpoint_capacity=slots, max_in_flight=2)
            self._node_of[replica.name] = node
        self._by_name = {replica.name: replica for replica in world.replicas}

    def _blob(self, asset: str) -> Blob:
        blob = self._blobs.get(asset)
        if blob is None:
            blob = self._blobs[asset] = Blob(asset, "", self._hardware.size_bytes(asset))
        return blob

    def arrive(self, index: int, request: TraceRequest, timeout_s: float) -> bool:
        now_s = self._world.now_s
        checkpoint, *loras = request.assets
        waiting = QueuedRequest(
            str(index), request.tenant, request.work, checkpoint,
            (self._blob(checkpoint),),
            tuple(self._blob(lora) for lora in loras), now_s, now_s + timeout_s,
        )  # fmt: skip
        admitted = self.scheduler.arrive(waiting, now_s)
        if admitted.refusal is not None:
            return False
        if admitted.displaced is not None:
            del self._requests[int(admitted.displaced[0].id)]
            self.displaced += 1
        self._requests[index] = request
        self._deadlines.append((waiting.deadline_s, index))
        self._assign()
        return True

    def _expire(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= self._world.now_s:
            index = self._deadlines.popleft()[1]
            if self._requests.pop(index, None) is not None:
                self.scheduler.queue.withdraw(str(index))

    def done(self, replica: SimulatedReplica, sent: _Sent) -> None:
        self.scheduler.ended(sent.assignment, self._world.now_s)
        models = replica.models.resident()
        keys = models.keys() | replica.extras.resident().keys()
        self.scheduler.fleet.on_device(replica.name, keys, models)
        if replica.node.tiers:
            self.scheduler.fleet.on_node(self._node_of[replica.name], replica.node.resident())
        self._assign()

    def _assign(self) -> None:
        self._expire()
        for assignment in self.scheduler.assign(self._world.now_s):
            index = int(assignment.request.id)
            request = self._requests.pop(index)
            self._by_name[assignment.replica_id].give(request, _Sent(index, assignment))
