"""What a pool reports of itself: state, events, progress of a wake-up, metrics."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from prometheus_client.metrics_core import Metric

from router.autoscaling import ScalingCandidate, queued
from router.pool import Pool
from serving.generation.events import Starting
from serving.generation.status import (
    PoolEvent,
    PoolState,
    PoolStatus,
    ReplicaStart,
    StartProgress,
)
from serving.pool.dispatcher import Dispatcher
from serving.pool.startup import StartupTimelines

log = logging.getLogger(__name__)

_EVENTS = 500


class PoolReport:
    """``outdated`` and ``stopping`` name replicas; the autoscaler keeps them."""

    def __init__(
        self,
        pool: Callable[[], Pool],
        dispatcher: Dispatcher,
        timelines: StartupTimelines,
        outdated: Callable[[], Sequence[str]],
        stopping: Callable[[], Sequence[str]],
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._dispatcher = dispatcher
        self._timelines = timelines
        self._outdated = outdated
        self._stopping = stopping
        self._clock = clock
        self._now = now
        self._events: deque[PoolEvent] = deque(maxlen=_EVENTS)

    def note(self, event: PoolEvent) -> None:
        self._events.append(event)
        self._dispatcher.metrics.event(event.kind)
        log.info("pool %s: %s %s", self._pool().name, event.replica, event.kind)

    def waking(self) -> Starting | None:
        """Return the progress of a pool that is waking up, else None."""
        progress = self._starting(self._dispatcher.roster.members())
        if progress is None:
            return None
        return Starting(self._pool().name, progress.phase, progress.start_s)

    def status(self) -> PoolStatus:
        return PoolStatus(self._pool(), self.state())

    def state(self) -> PoolState:
        members = self._dispatcher.roster.members()
        return PoolState(
            waiting=queued(self._dispatcher.waiting, members),
            replicas=[self._replica(member) for member in members],
            starting=self._starting(members),
            outdated=self._outdated(),
            stopping=self._stopping(),
            events=list(self._events),
        )

    def families(self) -> list[Metric]:
        return self._dispatcher.metrics.families(self._dispatcher.status(), self.status())

    def _starting(self, members: Sequence[ScalingCandidate]) -> StartProgress | None:
        if any(member.is_up for member in members):
            return None
        return self._timelines.furthest([member.id for member in members], self._now())

    def _replica(self, member: ScalingCandidate) -> ReplicaStart:
        timeline = self._timelines.of(member.id)
        is_idle = member.is_up and not member.running
        return ReplicaStart(
            id=member.id,
            is_up=member.is_up,
            phase=None if member.is_up else timeline.phase,
            start_s=timeline.durations_s(self._now()),
            running=member.running,
            idle_s=self._clock() - member.idle_since_s if is_idle else None,
        )
