"""The state of a pool, as its dispatcher and autoscaler report it.

Messages as in :mod:`serving.generation.contract`; the API turns them into JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct, field

from router.pool import Pool
from serving.generation.contract import Phase

PoolEventKind = Literal["ordered", "ready", "released", "failed"]


class PoolEvent(Struct, frozen=True, kw_only=True):
    """What happened to a replica, with what belongs to its kind."""

    at_s: float
    kind: PoolEventKind
    replica: str
    #: Ordered: requests in the queue.
    waiting: int | None = None
    #: Ready: duration by phase of the start.
    start_s: Mapping[Phase, float] | None = None
    #: Failed.
    reason: str | None = None


class StartProgress(Struct, frozen=True):
    """The start of the replica that is furthest in it. ``start_s``: duration by phase."""

    phase: Phase
    start_s: Mapping[Phase, float]


class ReplicaStart(Struct, frozen=True, kw_only=True):
    """A replica as the autoscaler sees it. ``phase``: None once it is up."""

    id: str
    is_up: bool
    phase: Phase | None = None
    start_s: Mapping[Phase, float] = field(default_factory=dict)
    running: int = 0
    #: None while it works or starts.
    idle_s: float | None = None


class PoolState(Struct, frozen=True, kw_only=True):
    """What a pool's autoscaler does."""

    waiting: int
    replicas: Sequence[ReplicaStart]
    #: While no replica is up and one starts.
    starting: StartProgress | None = None
    #: Of a rollout, still to be replaced.
    outdated: Sequence[str] = ()
    stopping: Sequence[str] = ()
    events: Sequence[PoolEvent] = ()


class EstimatedFetch(Struct, frozen=True):
    """A blob that a replica would fetch, and from which tier."""

    key: str
    tier: str
    size_bytes: int
    seconds: float


class PoolEstimate(Struct, frozen=True, kw_only=True):
    """What a request would take in a pool now. ``wait_s``: until a replica begins with it."""

    waiting: int
    replica: str
    wait_s: float
    generate_s: float
    fetches: tuple[EstimatedFetch, ...]
    #: The pool has measured its speed.
    is_measured: bool


class PoolStatus(Struct, frozen=True):
    """A pool's configuration and state; without a state, its dispatcher does not answer."""

    pool: Pool
    state: PoolState | None = None


class ReplicaStatus(Struct, frozen=True, kw_only=True):
    """A replica as the dispatcher sees it. ``pid``: None while it does not answer."""

    id: str
    pid: int | None
    running: int
    free_in_s: float
    #: Number of values by tier.
    resident: Mapping[str, int]
    #: Active eviction policy by tier.
    eviction: Mapping[str, str]

    @property
    def is_up(self) -> bool:
        return self.pid is not None


class DispatcherStatus(Struct, frozen=True, kw_only=True):
    """A pool's queue, speeds and replicas."""

    waiting: int
    #: Queued, but over their plan's limit of concurrent images.
    held: int
    work_per_s: float
    bytes_per_s: Mapping[str, float]
    prefetched: int
    prefetch_precision: float
    quarantined: int
    replicas: Sequence[ReplicaStatus]
