"""Bodies of health, status and GPU pools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import structs
from pydantic import BaseModel

from serving.generation.contract import Phase
from serving.generation.status import (
    DispatcherStatus,
    PoolEventKind,
    PoolState,
    PoolStatus,
    ReplicaStart,
    ReplicaStatus,
)
from serving.generation.status import PoolEvent as Event


class Alive(BaseModel):
    status: Literal["ok"]


class Ready(BaseModel):
    """``ok`` or an error type by component."""

    status: Literal["ready", "not ready"]
    database: str
    store: str
    pools: str


class BusyReplica(BaseModel):
    """A replica, its process, running requests, seconds until it is free, values by tier and active
    eviction policy by tier."""

    id: str
    state: Literal["up", "down"]
    pid: int | None
    running: int
    free_in_s: float
    resident: dict[str, int]
    eviction: dict[str, str]

    @classmethod
    def of(cls, replica: ReplicaStatus) -> BusyReplica:
        return cls(state="up" if replica.is_up else "down", **structs.asdict(replica))


class Queue(BaseModel):
    """A pool's queue and measured speeds (work is evaluations × pixels × images)."""

    waiting: int
    held: int
    work_per_s: float
    bytes_per_s: dict[str, float]
    prefetched: int
    prefetch_precision: float
    quarantined: int

    @classmethod
    def of(cls, status: DispatcherStatus) -> Queue:
        return cls(**structs.asdict(status))


class Status(BaseModel):
    waiting: int
    replicas: list[BusyReplica]
    pools: dict[str, Queue]

    @classmethod
    def of(cls, statuses: Mapping[str, DispatcherStatus]) -> Status:
        return cls(
            waiting=sum(status.waiting for status in statuses.values()),
            replicas=[
                BusyReplica.of(replica)
                for status in statuses.values()
                for replica in status.replicas
            ],
            pools={name: Queue.of(status) for name, status in statuses.items()},
        )


class StartProgress(BaseModel):
    """The phase of a start, and the seconds of each."""

    phase: Phase
    start_s: dict[Phase, float]


class PoolReplica(BaseModel):
    id: str
    state: Literal["up", "starting"]
    phase: Phase | None
    start_s: dict[Phase, float]
    running: int
    idle_s: float | None

    @classmethod
    def of(cls, replica: ReplicaStart) -> PoolReplica:
        return cls(state="up" if replica.is_up else "starting", **structs.asdict(replica))


class PoolEventDetails(BaseModel):
    """Ordered: requests ``waiting``; ready: ``seconds`` by phase; failed: the ``reason``."""

    waiting: int | None = None
    seconds: dict[Phase, float] | None = None
    reason: str | None = None


class PoolEvent(BaseModel):
    at_s: float
    what: PoolEventKind
    replica: str
    details: PoolEventDetails

    @classmethod
    def of(cls, event: Event) -> PoolEvent:
        """``details`` has what belongs to the kind of event."""
        named = {"waiting": event.waiting, "seconds": event.start_s, "reason": event.reason}
        details = {name: value for name, value in named.items() if value is not None}
        return cls(
            at_s=event.at_s,
            what=event.kind,
            replica=event.replica,
            details=PoolEventDetails.model_validate(details),
        )


class Pool(BaseModel):
    """A GPU pool; from ``waiting`` on, if it responds."""

    name: str
    gpu: str
    queue_size: int
    min: int
    max: int
    idle_s: float
    waiting: int | None = None
    replicas: list[PoolReplica] | None = None
    starting: StartProgress | None = None
    outdated: list[str] | None = None
    stopping: list[str] | None = None
    events: list[PoolEvent] | None = None

    @classmethod
    def of(cls, status: PoolStatus) -> Pool:
        pool, state = status.pool, status.state
        configured = cls(
            name=pool.name,
            gpu=pool.gpu,
            queue_size=pool.queue_size,
            min=pool.min,
            max=pool.max,
            idle_s=pool.idle_s,
        )
        return configured if state is None else configured._with(state)

    def _with(self, state: PoolState) -> Pool:
        starting = state.starting
        return self.model_copy(
            update={
                "waiting": state.waiting,
                "replicas": [PoolReplica.of(replica) for replica in state.replicas],
                "starting": starting and StartProgress.model_validate(structs.asdict(starting)),
                "outdated": list(state.outdated),
                "stopping": list(state.stopping),
                "events": [PoolEvent.of(event) for event in state.events],
            }
        )


class Pools(BaseModel):
    data: list[Pool]
