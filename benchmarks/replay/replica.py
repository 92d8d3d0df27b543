"""A simulated replica: real tiers under a virtual clock, with computed times.

The next request's assets are loaded during a generation, as far as there is room.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from benchmarks.replay.trace import TraceRequest, is_checkpoint
from orchestrator.device_tier import DeviceLease, DeviceTier
from orchestrator.errors import TierFull


@dataclass(frozen=True, slots=True)
class Hardware:
    """The simulated hardware: bytes, bytes per second; ``picture_s`` per usual image."""

    replicas: int = 8
    replicas_per_node: int = 8
    checkpoint_slots: int = 1
    lora_slots: int = 4
    checkpoint_bytes: int = 5_000_000_000
    lora_bytes: int = 1_000_000_000
    store_bytes_s: float = 1e9
    disk_bytes_s: float = 2e9
    host_bytes_s: float = 10e9
    disk_bytes: int = 0
    host_bytes: int = 0
    picture_s: float = 2.86
    swap_s: float = 0.02

    def size_bytes(self, asset: str) -> int:
        return self.checkpoint_bytes if is_checkpoint(asset) else self.lora_bytes

    def that_loads_at_once(self) -> Hardware:
        """Return it with practically instant loading."""
        instant = 1e15
        return replace(self, store_bytes_s=instant, disk_bytes_s=instant, host_bytes_s=instant)

    def speeds(self) -> dict[str, float]:
        return {"store": self.store_bytes_s, "disk": self.disk_bytes_s, "host": self.host_bytes_s}


class SimulatedNode:
    """A node's file tiers; a tier of 0 bytes is left out."""

    def __init__(self, hardware: Hardware, clock: Callable[[], float]) -> None:
        self._hardware = hardware
        self.tiers: dict[str, DeviceTier[None]] = {
            name: DeviceTier(budget, name, clock=clock)
            for name, budget in (("host", hardware.host_bytes), ("disk", hardware.disk_bytes))
            if budget
        }
        self.from_store_bytes = 0
        self.loras_from_store = Counter[str]()  # by tenant

    def acquire(self, asset: str, owner: str) -> float:
        """Return seconds to load to a device."""
        size = self._hardware.size_bytes(asset)
        found = "store"
        for name, tier in self.tiers.items():
            lease = tier.lease(asset, owner)
            if lease is not None:
                lease.release()
                found = name
                break
        for name, tier in self.tiers.items():
            if name == found:
                break
            tier.admit(asset, size, lambda: None, owner)[0].release()
        if found == "store":
            self.from_store_bytes += size
            self.loras_from_store[owner] += not is_checkpoint(asset)
        return size / self._hardware.speeds()[found]

    def resident(self) -> dict[str, frozenset[str]]:
        return {name: frozenset(tier.resident()) for name, tier in self.tiers.items()}


@dataclass(slots=True)
class _Job:
    request: TraceRequest
    tag: object
    missing: deque[str] = field(default_factory=deque)
    leases: list[DeviceLease[None]] = field(default_factory=list)
    ready_s: float | None = None


class SimulatedReplica:
    """Runs requests one after another; calls ``wake`` with its next event's time, ``done`` after
    each request."""

    def __init__(
        self,
        name: str,
        node: SimulatedNode,
        hardware: Hardware,
        clock: Callable[[], float],
        wake: Callable[[float, SimulatedReplica], None],
        done: Callable[[SimulatedReplica, TraceRequest, object], None],
    ) -> None:
        self.name = name
        self.node = node
        self._hardware = hardware
        self._clock = clock
        self._wake = wake
        self._done = done
        h = hardware
        self.models: DeviceTier[None] = DeviceTier(
            h.checkpoint_slots * h.checkpoint_bytes, "models", clock=clock, share=1.0
        )
        self.extras: DeviceTier[None] = DeviceTier(
            h.lora_slots * h.lora_bytes, "extras", clock=clock
        )
        self._jobs: deque[_Job] = deque()  # first: generating or next
        self._is_generating = False
        self.wakes_s: float | None = None
        self.checkpoint_loads = 0
        self.lora_uses, self.lora_loads = Counter[str](), Counter[str]()  # by tenant
        self.busy_s = 0.0

    @property
    def outstanding(self) -> int:
        return len(self._jobs)

    def holds(self, asset: str) -> bool:
        return asset in (self.models if is_checkpoint(asset) else self.extras)

    def give(self, request: TraceRequest, tag: object = None) -> None:
        """Queue a request; ``tag`` is passed to ``done``."""
        self._jobs.append(_Job(request, tag, deque(request.assets)))
        if len(self._jobs) == 1:
            self._start_next()
        elif len(self._jobs) == 2 and self._is_generating:
            self._prepare(self._jobs[1])

    def _prepare(self, job: _Job) -> None:
        at_s = max(self._clock(), job.ready_s or 0.0)
        while job.missing:
            asset = job.missing[0]
            tier = self.models if is_checkpoint(asset) else self.extras
            try:
                lease, loaded = tier.admit(
                    asset, self._hardware.size_bytes(asset), lambda: None, job.request.tenant
                )
            except TierFull:
                if self._is_generating:
                    break  # retried at the running request's release
                loaded = True  # more assets than slots: only for this request
            else:
                job.leases.append(lease)
            job.missing.popleft()
            if loaded:
                at_s += self.node.acquire(asset, job.request.tenant)
                if is_checkpoint(asset):
                    self.checkpoint_loads += 1
                else:
                    self.lora_loads[job.request.tenant] += 1
        job.ready_s = at_s

    def _start_next(self) -> None:
        if self._is_generating or not self._jobs:
            return
        job = self._jobs[0]
        if job.missing:
            self._prepare(job)
        assert not job.missing
        assert job.ready_s is not None
        if job.ready_s > self._clock():
            self._sleep_until(job.ready_s)
            return
        self._is_generating = True
        generation_s = self._hardware.swap_s + job.request.cost * self._hardware.picture_s
        self.busy_s += generation_s
        self._sleep_until(self._clock() + generation_s)
        if len(self._jobs) > 1:
            self._prepare(self._jobs[1])

    def _sleep_until(self, at_s: float) -> None:
        if self.wakes_s != at_s:
            self.wakes_s = at_s
            self._wake(at_s, self)

    def woken(self, at_s: float) -> None:
        if self.wakes_s != at_s:
            return  # superseded
        self.wakes_s = None
        if self._is_generating:
            self._is_generating = False
            job = self._jobs.popleft()
            for lease in job.leases:
                lease.release()
            self.lora_uses[job.request.tenant] += len(job.request.loras)
            self._start_next()
            self._done(self, job.request, job.tag)
        else:
            self._start_next()
