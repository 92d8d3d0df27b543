"""The autoscaler of a pool: the async shell around router.autoscaling, on one event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from itertools import count

from router.autoscaling import scale
from router.pool import Pool
from router.rollout import Rollout
from serving.generation.status import PoolEvent
from serving.pool.dispatcher import Dispatcher
from serving.pool.replica_launcher import ReplicaLauncher
from serving.pool.report import PoolReport
from serving.pool.startup import StartupTimelines

log = logging.getLogger(__name__)

_INTERVAL_S = 0.2
_FAILURES_S = 2.0
_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
#: Then a replica is given up; if it was up once, Ray Serve restarts it without limit.
_LONGEST_START_S = 1800.0


class Autoscaler:
    """Keeps one pool at its decided size."""

    def __init__(
        self,
        pool: Pool,
        dispatcher: Dispatcher,
        launcher: ReplicaLauncher,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` must be the dispatcher's; ``now`` is the wall clock."""
        self.pool = pool
        self._dispatcher = dispatcher
        self._launcher = launcher
        self._clock = clock
        self._now = now
        self._names = count()
        self.timelines = StartupTimelines()
        self._down_since_s: dict[str, float] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._rollout = Rollout()
        self._is_rollout_due = False
        self.report = PoolReport(
            lambda: self.pool,
            dispatcher,
            self.timelines,
            lambda: sorted(self._rollout.outdated),
            lambda: list(self._stopping),
            clock,
            now,
        )
        self._failures = 0
        self._paused_until_s = 0.0
        self._failures_checked_s = 0.0

    async def run(self) -> None:
        """Scale until cancelled; first adopt an earlier autoscaler's replicas."""
        is_first = True
        while True:
            try:
                if is_first:
                    await self._adopt_existing()
                    is_first = False
                await self.look()
            except Exception:  # such as an outage of Ray
                log.exception("pool %s cannot be scaled; retrying", self.pool.name)
                await asyncio.sleep(1.0)
            await asyncio.sleep(_INTERVAL_S)

    async def _adopt_existing(self) -> None:
        for name in await self._launcher.existing():
            self.timelines.adopt(name)
            self._dispatcher.roster.add(self._launcher.client(name))

    async def look(self) -> None:
        """Note starts that are ready or failed, then start and stop replicas."""
        now = self._clock()
        members = self._dispatcher.roster.members()
        for member in members:
            if member.is_up and self.timelines.is_starting(member.id):
                self._ready(member.id)
        down = [member.id for member in members if not member.is_up]
        self._down_since_s = {name: self._down_since_s.get(name, now) for name in down}
        if down and now >= self._failures_checked_s + _FAILURES_S:
            self._failures_checked_s = now
            overdue = {
                name: f"it was down for {now - since:.0f} s"
                for name, since in self._down_since_s.items()
                if now - since > _LONGEST_START_S
            }
            for name, reason in {**overdue, **await self._launcher.failed(down)}.items():
                await self._failed(name, reason)
            members = self._dispatcher.roster.members()
        leaving = len(self._stopping)
        plan = scale(self.pool, self._dispatcher.waiting, members, now, leaving)
        if plan.start and now >= self._paused_until_s:
            await self._start(plan.start)
        for name in plan.stop:
            self._begin_to_stop(name)
        if not plan.start:
            await self._step_rollout(now)
        await asyncio.sleep(0)  # lets stopping tasks remove their replicas

    def renew(self) -> None:
        """Replace all replicas one by one, when idle; below the maximum, a new one starts first."""
        self._is_rollout_due = True

    async def _step_rollout(self, now_s: float) -> None:
        members = self._dispatcher.roster.members()
        if self._is_rollout_due:
            self._is_rollout_due = False
            self._rollout.begin(members)
        if not self._rollout.outdated or self._stopping or now_s < self._paused_until_s:
            return
        plan = self._rollout.step(self.pool, members, now_s)
        if self._rollout.is_given_up:
            log.error("the rollout of pool %s stops: a new replica is not up", self.pool.name)
        elif not self._rollout.outdated:
            log.info("the rollout of pool %s is complete", self.pool.name)
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
        taken = {*self.timelines.names(), *self._stopping, *await self._launcher.existing()}
        names: list[str] = []
        while len(names) < number:
            name = f"{self.pool.name}-{next(self._names)}"
            if name not in taken:
                names.append(name)
        ordered_s = self._now()
        for name in names:
            self.timelines.ordered(name, ordered_s)
            self.report.note(
                PoolEvent(
                    at_s=ordered_s, kind="ordered", replica=name, waiting=self._dispatcher.waiting
                )
            )
            self._dispatcher.roster.add(self._launcher.client(name))
        await self._launcher.start(names)

    async def _stop(self, name: str) -> None:
        await self._dispatcher.roster.remove(name)
        self.timelines.forget(name)
        self.report.note(PoolEvent(at_s=self._now(), kind="released", replica=name))
        await self._launcher.stop(name)

    def _stopped(self, name: str, task: asyncio.Task[None]) -> None:
        self._stopping.pop(name, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s could not be stopped", name, exc_info=task.exception())

    def _ready(self, name: str) -> None:
        self._failures = 0
        spent_s = self.timelines.ready(name, self._now())
        if spent_s:  # empty: older than this autoscaler
            self._dispatcher.metrics.started(spent_s)
            self.report.note(
                PoolEvent(at_s=self._now(), kind="ready", replica=name, start_s=spent_s)
            )

    async def _failed(self, name: str, reason: str) -> None:
        self._failures += 1
        pause_s = min(_LONGEST_PAUSE_S, _PAUSE_S * 2 ** (self._failures - 1))
        self._paused_until_s = self._clock() + pause_s
        log.error("%s did not start (next attempt in %.0f s): %s", name, pause_s, reason)
        self.timelines.forget(name)
        last_line = reason.strip().rpartition("\n")[2]
        self.report.note(PoolEvent(at_s=self._now(), kind="failed", replica=name, reason=last_line))
        if self._rollout.outdated:
            log.error("the rollout of pool %s stops: a new replica failed", self.pool.name)
            self._rollout.give_up()
        await self._dispatcher.roster.remove(name)
        await self._launcher.stop(name)
