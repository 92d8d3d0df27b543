"""The autoscaler over fake replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from router.pool import Pool
from serving.errors import ReplicaLost
from serving.pool.autoscaler import Autoscaler
from serving.pool.dispatcher import Dispatcher
from serving.pool.fakes import FakeLauncher
from tests.serving.pool.test_dispatcher import submission, until


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def running_autoscaler(
    pool: Pool, launcher: FakeLauncher | None = None
) -> AsyncIterator[tuple[Dispatcher, FakeLauncher, Autoscaler, Clock]]:
    clock = Clock()
    launcher = launcher or FakeLauncher()
    dispatcher = Dispatcher([], clock=clock)
    dispatcher.start()
    autoscaler = Autoscaler(pool, dispatcher, launcher, clock, now=clock)
    try:
        yield dispatcher, launcher, autoscaler, clock
    finally:
        for replica in launcher.replicas.values():
            replica.go.set()
        await autoscaler.close()
        await dispatcher.close()


async def up(dispatcher: Dispatcher, launcher: FakeLauncher, name: str) -> None:
    launcher.replicas[name].up.set()
    await until(lambda: any(m.id == name and m.is_up for m in dispatcher.roster.members()))


def events_of(autoscaler: Autoscaler) -> list[tuple[str, str]]:
    return [(event.kind, event.replica) for event in autoscaler.report.state().events]


async def test_a_sleeping_pool_wakes_generates_and_sleeps_again() -> None:
    async with running_autoscaler(Pool("a", queue_size=1, max=4, idle_s=30)) as (
        dispatcher,
        launcher,
        autoscaler,
        clock,
    ):
        await autoscaler.look()
        assert launcher.ordered == []
        generated = [asyncio.create_task(dispatcher.submit(submission(str(i)))) for i in range(10)]
        await until(lambda: dispatcher.waiting == 10)
        await autoscaler.look()
        assert launcher.ordered == ["a-0", "a-1", "a-2", "a-3"]
        state = autoscaler.report.state()
        assert state.waiting == 10
        assert state.starting is not None
        assert state.starting.phase == "node"
        for name in launcher.ordered:
            await up(dispatcher, launcher, name)
        await asyncio.gather(*generated)
        await autoscaler.look()
        assert [what for what, _ in events_of(autoscaler)] == ["ordered"] * 4 + ["ready"] * 4
        clock.now_s = 29.0
        await autoscaler.look()
        assert launcher.stopped == []
        clock.now_s = 31.0
        await autoscaler.look()
        await until(lambda: sorted(launcher.stopped) == launcher.ordered)
        assert dispatcher.roster.members() == []
        assert [what for what, _ in events_of(autoscaler)][-4:] == ["released"] * 4
        # One request wakes the sleeping pool.
        again = asyncio.create_task(dispatcher.submit(submission("again")))
        await until(lambda: dispatcher.waiting == 1)
        await autoscaler.look()
        assert launcher.ordered[4:] == ["a-4"]
        await up(dispatcher, launcher, "a-4")
        await again


async def test_phases_of_a_start_are_timed_and_shown() -> None:
    async with running_autoscaler(Pool("a", min=1)) as (dispatcher, launcher, autoscaler, clock):
        await autoscaler.look()
        for at_s, phase in ((3.0, "process"), (5.0, "model"), (6.0, "warm-up")):
            clock.now_s = at_s
            autoscaler.timelines.phase_began("a-0", phase, at_s)  # type: ignore[arg-type]
        clock.now_s = 6.5
        (replica,) = autoscaler.report.state().replicas
        starting = autoscaler.report.state().starting
        assert starting is not None
        assert replica.phase == starting.phase == "warm-up"
        clock.now_s = 7.0
        await up(dispatcher, launcher, "a-0")
        await autoscaler.look()
        (replica,) = autoscaler.report.state().replicas
        assert replica.start_s == {"node": 3.0, "process": 2.0, "model": 1.0, "warm-up": 1.0}
        assert autoscaler.report.state().starting is None


async def test_a_busy_replica_is_drained_before_it_stops() -> None:
    async with running_autoscaler(Pool("a", min=2, max=2, idle_s=10)) as (
        dispatcher,
        launcher,
        autoscaler,
        clock,
    ):
        await autoscaler.look()
        for name in ("a-0", "a-1"):
            launcher.replicas[name].go.clear()
            await up(dispatcher, launcher, name)
        result = asyncio.create_task(dispatcher.submit(submission("r")))
        await until(lambda: launcher.replicas["a-0"].started or launcher.replicas["a-1"].started)
        busy = "a-0" if launcher.replicas["a-0"].started else "a-1"
        idle = "a-1" if busy == "a-0" else "a-0"
        autoscaler.pool = replace(autoscaler.pool, min=0)
        clock.now_s = 20.0
        await autoscaler.look()
        await until(lambda: launcher.stopped == [idle])
        leaving = asyncio.create_task(dispatcher.roster.remove(busy))
        await asyncio.sleep(0)
        late = asyncio.create_task(dispatcher.submit(submission("late")))
        await until(lambda: dispatcher.waiting == 1)
        assert not leaving.done()
        launcher.replicas[busy].go.set()
        assert (await result).images
        await leaving
        assert launcher.replicas[busy].started == ["r"]
        late.cancel()
        await asyncio.wait([late])


async def test_a_failed_start_is_given_up_and_retried_later() -> None:
    async with running_autoscaler(Pool("a", max=2)) as (dispatcher, launcher, autoscaler, clock):
        waiting = asyncio.create_task(dispatcher.submit(submission("r")))
        await until(lambda: dispatcher.waiting == 1)
        await autoscaler.look()
        launcher.broken["a-0"] = "Traceback …\nTierUnusable: no dispatcher"
        clock.now_s = 3.0
        await autoscaler.look()
        assert launcher.stopped == ["a-0"]
        autoscaler.timelines.phase_began("a-0", "model", 3.0)  # too late: ignored
        assert autoscaler.report.state().replicas == []
        assert events_of(autoscaler)[-1] == ("failed", "a-0")
        assert autoscaler.report.state().events[-1].reason == "TierUnusable: no dispatcher"
        assert launcher.ordered == ["a-0"]
        clock.now_s = 9.0
        await autoscaler.look()
        assert launcher.ordered == ["a-0", "a-1"]
        await up(dispatcher, launcher, "a-1")
        await waiting


async def test_a_new_autoscaler_adopts_existing_replicas() -> None:
    launcher = FakeLauncher()
    launcher.client("a-0")
    launcher.client("a-7")
    async with running_autoscaler(Pool("a", min=3, max=3), launcher) as (
        dispatcher,
        _,
        autoscaler,
        _,
    ):
        running = asyncio.create_task(autoscaler.run())
        await until(lambda: len(launcher.ordered) == 1)
        assert not {"a-0", "a-7"} & {*launcher.ordered}
        assert len(dispatcher.roster.members()) == 3
        replicas = {replica.id: replica for replica in autoscaler.report.state().replicas}
        assert replicas["a-7"].start_s == {}  # unknown for adopted replicas
        await up(dispatcher, launcher, "a-7")
        await autoscaler.look()
        assert ("ready", "a-7") not in events_of(autoscaler)
        running.cancel()
        await asyncio.wait([running])


async def test_the_autoscaler_survives_an_outage_of_the_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The failed order is repeated."""
    launcher = FakeLauncher()
    async with running_autoscaler(Pool("a", min=1), launcher) as (_, _, autoscaler, clock):
        pause = asyncio.sleep
        attempts: list[str] = []

        async def away(names: Sequence[str]) -> None:
            attempts.extend(names)
            raise ConnectionError("Ray is away")

        monkeypatch.setattr(launcher, "start", away)
        monkeypatch.setattr(asyncio, "sleep", lambda _: pause(0))
        running = asyncio.create_task(autoscaler.run())
        await until(lambda: attempts == ["a-0"])
        launcher.broken["a-0"] = "Ray Serve does not know it"
        clock.now_s = 3.0
        await until(lambda: launcher.stopped == ["a-0"])
        clock.now_s = 9.0
        await until(lambda: attempts == ["a-0", "a-1"])
        running.cancel()
        await asyncio.wait([running])


async def test_a_rollout_starts_a_spare_replica_below_the_maximum() -> None:
    async with running_autoscaler(Pool("a", min=2, max=3)) as (dispatcher, launcher, autoscaler, _):
        await autoscaler.look()
        for name in ("a-0", "a-1"):
            await up(dispatcher, launcher, name)
        await autoscaler.look()
        launcher.replicas["a-0"].go.clear()
        launcher.replicas["a-1"].go.clear()
        result = [asyncio.create_task(dispatcher.submit(submission(str(i)))) for i in range(4)]
        await until(lambda: all(member.running for member in dispatcher.roster.members()))
        autoscaler.renew()
        await autoscaler.look()
        assert launcher.ordered == ["a-0", "a-1", "a-2"]  # the spare
        assert launcher.stopped == []
        await autoscaler.look()
        assert len(launcher.ordered) == 3
        await up(dispatcher, launcher, "a-2")
        await autoscaler.look()
        await autoscaler.look()
        assert len(dispatcher.roster.members()) == 2
        assert launcher.stopped == []  # both are busy
        for replica in launcher.replicas.values():
            replica.go.set()
        await asyncio.gather(*result)
        await until(lambda: len(launcher.stopped) == 1)
        await autoscaler.look()
        assert len(launcher.ordered) == 4
        await up(dispatcher, launcher, "a-3")
        await autoscaler.look()
        await until(lambda: len(launcher.stopped) == 2)
        await autoscaler.look()
        assert sorted(launcher.stopped) == ["a-0", "a-1"]
        assert sorted(member.id for member in dispatcher.roster.members()) == ["a-2", "a-3"]
        assert len(launcher.ordered) == 4


async def test_a_rollout_at_the_maximum_replaces_one_replica_at_a_time() -> None:
    async with running_autoscaler(Pool("a", min=2, max=2)) as (dispatcher, launcher, autoscaler, _):
        await autoscaler.look()
        for name in ("a-0", "a-1"):
            await up(dispatcher, launcher, name)
        await autoscaler.look()
        autoscaler.renew()
        for new in ("a-2", "a-3"):
            await autoscaler.look()
            await until(lambda: len(launcher.stopped) == len(launcher.ordered) - 1)
            await autoscaler.look()
            await autoscaler.look()
            assert launcher.ordered[-1] == new
            assert len(launcher.stopped) == len(launcher.ordered) - 2
            await up(dispatcher, launcher, new)
        await autoscaler.look()
        assert launcher.stopped == ["a-0", "a-1"]


@pytest.mark.parametrize("largest", [2, 3])
async def test_a_rollout_stops_when_new_replicas_do_not_start(largest: int) -> None:
    """Broken code must not take down the pool."""
    async with running_autoscaler(Pool("a", min=2, max=largest)) as (
        dispatcher,
        launcher,
        autoscaler,
        clock,
    ):
        await autoscaler.look()
        for name in ("a-0", "a-1"):
            await up(dispatcher, launcher, name)
        launcher.broken = {f"a-{index}": "ImportError: new code" for index in range(2, 50)}
        autoscaler.renew()
        for _ in range(600):
            clock.now_s += 1.0
            await autoscaler.look()
            await asyncio.sleep(0)
        alive = [member for member in dispatcher.roster.members() if member.is_up]
        assert len(alive) == (1 if largest == 2 else 2)
        assert len(launcher.stopped) < len(launcher.ordered)
        assert autoscaler.report.state().outdated == []


async def test_a_rollout_continues_without_a_spare_when_no_gpu_is_available() -> None:
    async with running_autoscaler(Pool("a", min=2, max=3, idle_s=1e6)) as (
        dispatcher,
        launcher,
        autoscaler,
        clock,
    ):
        await autoscaler.look()
        for name in ("a-0", "a-1"):
            await up(dispatcher, launcher, name)
        await autoscaler.look()
        autoscaler.renew()
        await autoscaler.look()
        assert launcher.ordered[2:] == ["a-2"]  # it never gets a GPU
        clock.now_s = 500.0
        await autoscaler.look()
        assert launcher.stopped == []
        assert autoscaler.report.state().outdated == ["a-0", "a-1"]
        clock.now_s = 1200.0
        await autoscaler.look()
        await until(lambda: launcher.stopped == ["a-2"])
        for new in ("a-3", "a-4"):  # without the spare, one at a time
            async with asyncio.timeout(10):
                while launcher.ordered[-1] != new:
                    await autoscaler.look()
            assert len(launcher.stopped) == len(launcher.ordered) - 2
            await up(dispatcher, launcher, new)
        await autoscaler.look()
        assert launcher.stopped == ["a-2", "a-0", "a-1"]
        assert autoscaler.report.state().outdated == []


async def test_a_replica_that_does_not_restart_is_given_up() -> None:
    async with running_autoscaler(Pool("a", min=1, max=1)) as (
        dispatcher,
        launcher,
        autoscaler,
        clock,
    ):
        await autoscaler.look()
        await autoscaler.look()
        await up(dispatcher, launcher, "a-0")
        clock.now_s = 900.0
        await autoscaler.look()
        replica = launcher.replicas["a-0"]
        replica.up.clear()
        replica.fail_with = ReplicaLost("it died")
        asked = asyncio.create_task(dispatcher.submit(submission("r", timeout_s=1e6)))
        await until(lambda: not dispatcher.roster.members()[0].is_up)
        for clock.now_s in (1000.0, 2799.0):  # counted from when it went down
            await autoscaler.look()
            assert launcher.stopped == []
        clock.now_s = 2801.1
        await autoscaler.look()
        assert launcher.stopped == ["a-0"]
        assert events_of(autoscaler)[-1] == ("failed", "a-0")
        clock.now_s += 10.0
        await autoscaler.look()
        assert launcher.ordered == ["a-0", "a-1"]
        asked.cancel()
