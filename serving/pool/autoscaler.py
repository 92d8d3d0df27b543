"""A pool of GPUs that sleeps and wakes: the async shell around the router's scaler.

Mutable, all of it on one event loop: the history of each replica's start, the events. What is
decided is carried out by a :class:`ReplicaLauncher`; the replicas
themselves report the phases of their start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from typing import Any, Literal, Protocol, get_args

from prometheus_client.metrics_core import Metric

from router.autoscaling import Pool, ScalingCandidate, queued, scale
from router.rollout import Rollout
from serving.pool.dispatcher import Dispatcher
from serving.pool.replica_state import ReplicaClient

log = logging.getLogger(__name__)

#: What a start is made of: a machine is found, a process starts on it and imports, the model is
#: loaded, a first picture is drawn; then it is ready.
Phase = Literal["node", "process", "model", "warm-up", "ready"]
PHASES: tuple[Phase, ...] = get_args(Phase)

#: The scaler looks this often.
_LOOK_S = 0.2
#: And after as long whether a start has failed.
_FAILURES_S = 2.0
_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
#: One that is not up for as long is given up: Ray Serve tries again and again what was up once.
_LONGEST_START_S = 1800.0
_EVENTS = 500


class ReplicaLauncher(Protocol):
    """How replicas of one pool start and end. Their names are the pool's to give."""

    def client(self, name: str) -> ReplicaClient: ...

    async def existing(self) -> Sequence[str]:
        """Those that a keeper before this one has started."""

    async def start(self, names: Sequence[str]) -> None:
        """Order them; returns before they are up."""

    async def stop(self, name: str) -> None:
        """End one that draws nothing, and give its GPU back."""

    async def failed(self, names: Sequence[str]) -> Mapping[str, str]:
        """Those of them that will never be up, and why."""


@dataclass(slots=True)
class StartupTimeline:
    """When each phase of a replica's start began, in seconds of the epoch."""

    began_s: dict[Phase, float] = field(default_factory=dict)

    @property
    def phase(self) -> Phase:
        return max(self.began_s, key=PHASES.index, default="node")

    def durations_s(self, now_s: float) -> dict[str, float]:
        """Of the phases that are over, and of the one that goes on."""
        marks = [(phase, self.began_s[phase]) for phase in PHASES if phase in self.began_s]
        if not marks:  # it was there before its keeper
            return {}
        ends = [at for _, at in marks[1:]] + [now_s]
        return {
            phase: max(0.0, end - at)
            for (phase, at), end in zip(marks, ends, strict=True)
            if phase != "ready"
        }


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """``what`` is ordered, ready, released or failed."""

    at_s: float
    what: str
    replica: str
    details: Mapping[str, Any] = field(default_factory=dict)


class Autoscaler:
    """Keeps one pool as large as the scaler says."""

    def __init__(
        self,
        pool: Pool,
        dispatcher: Dispatcher,
        starter: ReplicaLauncher,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` must be the dispatcher's; ``now`` is for people and other machines."""
        self.pool = pool
        self._dispatcher = dispatcher
        self._starter = starter
        self._clock = clock
        self._now = now
        self._names = count()
        self._births: dict[str, StartupTimeline] = {}
        self._down_since_s: dict[str, float] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._renewal = Rollout()
        self._is_renewal_due = False
        self._events: deque[PoolEvent] = deque(maxlen=_EVENTS)
        self._failures = 0
        self._paused_until_s = 0.0
        self._looked_s = 0.0

    async def run(self) -> None:
        """Until cancelled. Takes over what an earlier keeper has started."""
        is_first = True
        while True:
            try:
                if is_first:
                    await self._take_over()
                    is_first = False
                await self.look()
            except Exception:  # Ray is away for a moment, say: the pool must go on being kept
                log.exception("pool %s cannot be looked after; trying again", self.pool.name)
                await asyncio.sleep(1.0)
            await asyncio.sleep(_LOOK_S)

    async def _take_over(self) -> None:
        for name in await self._starter.existing():
            self._births[name] = StartupTimeline()
            self._dispatcher.add(self._starter.client(name))

    async def look(self) -> None:
        """Once: what has become of those that start, and what should change."""
        now = self._clock()
        members = self._dispatcher.members()
        for member in members:
            birth = self._births.get(member.id)
            if member.is_up and birth is not None and "ready" not in birth.began_s:
                self._ready(member.id, birth)
        late = [member.id for member in members if not member.is_up]
        self._down_since_s = {name: self._down_since_s.get(name, now) for name in late}
        if late and now >= self._looked_s + _FAILURES_S:
            self._looked_s = now
            overdue = {
                name: f"it was not up for {now - since:.0f} s"
                for name, since in self._down_since_s.items()
                if now - since > _LONGEST_START_S
            }
            for name, reason in {**overdue, **await self._starter.failed(late)}.items():
                await self._failed(name, reason)
            members = self._dispatcher.members()
        leaving = len(self._stopping)
        plan = scale(self.pool, self._dispatcher.waiting, members, now, leaving)
        if plan.start and now >= self._paused_until_s:
            await self._start(plan.start)
        for name in plan.stop:
            self._begin_to_stop(name)
        if not plan.start:
            await self._renew(now)
        await asyncio.sleep(0)  # and let those that stop leave the members

    def renew(self) -> None:
        """Replace every replica that is there now, one after another; none while it draws. Where
        the pool may have one more, that is started first."""
        self._is_renewal_due = True

    async def _renew(self, now_s: float) -> None:
        members = self._dispatcher.members()
        if self._is_renewal_due:
            self._is_renewal_due = False
            self._renewal.begin(members)
        if not self._renewal.outdated or self._stopping or now_s < self._paused_until_s:
            return
        plan = self._renewal.step(self.pool, members, now_s)
        if self._renewal.is_given_up:
            log.error("pool %s is not renewed any further: a new one is not up", self.pool.name)
        elif not self._renewal.outdated:
            log.info("pool %s is renewed", self.pool.name)
        if plan.start:
            await self._start(plan.start)
        for name in plan.stop:
            self._begin_to_stop(name)

    def _begin_to_stop(self, name: str) -> None:
        task = asyncio.create_task(self._stop(name))
        self._stopping[name] = task
        task.add_done_callback(partial(self._stopped, name))

    async def close(self) -> None:
        await asyncio.gather(*self._stopping.values(), return_exceptions=True)

    async def _start(self, number: int) -> None:
        taken = {*self._births, *self._stopping, *await self._starter.existing()}
        names: list[str] = []
        while len(names) < number:
            name = f"{self.pool.name}-{next(self._names)}"
            if name not in taken:
                names.append(name)
        ordered_s = self._now()
        for name in names:
            self._births[name] = StartupTimeline({"node": ordered_s})
            self._note("ordered", name, waiting=self._dispatcher.waiting)
            self._dispatcher.add(self._starter.client(name))
        await self._starter.start(names)

    async def _stop(self, name: str) -> None:
        await self._dispatcher.remove(name)
        with suppress(KeyError):
            del self._births[name]
        self._note("released", name)
        await self._starter.stop(name)

    def _stopped(self, name: str, task: asyncio.Task[None]) -> None:
        self._stopping.pop(name, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s could not be stopped", name, exc_info=task.exception())

    def _ready(self, name: str, birth: StartupTimeline) -> None:
        birth.began_s["ready"] = self._now()
        self._failures = 0
        spent_s = birth.durations_s(self._now())
        if spent_s:  # else it was there before its keeper
            self._dispatcher.tally.started(spent_s)
            self._note("ready", name, seconds=spent_s)

    async def _failed(self, name: str, reason: str) -> None:
        """It is given up, and the next is not ordered at once."""
        self._failures += 1
        pause_s = min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** (self._failures - 1))
        self._paused_until_s = self._clock() + pause_s
        log.error("%s did not start (the next in %.0f s): %s", name, pause_s, reason)
        self._births.pop(name, None)
        self._note("failed", name, reason=reason.strip().rpartition("\n")[2])
        if self._renewal.outdated:
            log.error("pool %s is not renewed any further: a new one failed", self.pool.name)
            self._renewal.give_up()
        await self._dispatcher.remove(name)
        await self._starter.stop(name)

    def told(self, name: str, phase: Phase, at_s: float) -> None:
        """A replica's process says that a phase of its start began. One that was ready is being
        replaced; one that was given up is not heard."""
        birth = self._births.get(name)
        if birth is None:
            return
        if "ready" in birth.began_s:
            birth.began_s.clear()
        birth.began_s[phase] = at_s

    def _note(self, what: str, name: str, **details: Any) -> None:
        self._events.append(PoolEvent(self._now(), what, name, details))
        self._dispatcher.tally.event(what)
        log.info("pool %s: %s %s %s", self.pool.name, name, what, details or "")

    def _starting(self, members: Sequence[ScalingCandidate]) -> dict[str, Any] | None:
        """When nothing is up but something starts: the phase of the one that is furthest, and
        how long each of its phases took."""
        births = [b for m in members if not m.is_up and (b := self._births.get(m.id)) is not None]
        if not births or any(member.is_up for member in members):
            return None
        first = max(
            births, key=lambda b: (PHASES.index(b.phase), -min(b.began_s.values(), default=0))
        )
        return {"phase": first.phase, "start_s": first.durations_s(self._now())}

    def starting(self) -> dict[str, Any] | None:
        """How far the pool is in waking up; None when somebody is up, or nothing starts."""
        found = self._starting(self._dispatcher.members())
        return None if found is None else {"name": self.pool.name, **found}

    def status(self) -> dict[str, Any]:
        """For people and scripts."""
        now = self._now()
        members = self._dispatcher.members()
        return {
            **asdict(self.pool),
            "waiting": queued(self._dispatcher.waiting, members),
            "replicas": [
                {
                    "id": member.id,
                    "state": "up" if member.is_up else "starting",
                    "phase": None if member.is_up else self._birth(member.id).phase,
                    "start_s": self._birth(member.id).durations_s(now),
                    "running": member.running,
                    "idle_s": self._clock() - member.idle_since_s
                    if member.is_up and not member.running
                    else None,
                }
                for member in members
            ],
            "starting": self._starting(members),
            "outdated": sorted(self._renewal.outdated),
            "stopping": list(self._stopping),
            "events": [asdict(event) for event in self._events],
        }

    def families(self) -> list[Metric]:
        """For Prometheus."""
        return self._dispatcher.tally.families(self._dispatcher.status(), self.status())

    def _birth(self, name: str) -> StartupTimeline:
        return self._births.get(name) or StartupTimeline()
