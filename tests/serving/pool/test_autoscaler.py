"""A pool's keeper over replicas that are told when to be up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from router.autoscaling import Pool
from serving.errors import ReplicaLost
from serving.pool.autoscaler import Autoscaler
from serving.pool.dispatcher import Dispatcher
from tests.serving.pool.test_dispatcher import FakeReplica, submission, until


class FakeStarter:
    def __init__(self) -> None:
        self.replicas: dict[str, FakeReplica] = {}
        self.ordered: list[str] = []
        self.stopped: list[str] = []
        self.broken: dict[str, str] = {}

    def client(self, name: str) -> FakeReplica:
        if name not in self.replicas:
            self.replicas[name] = FakeReplica(name)
            self.replicas[name].up.clear()
        return self.replicas[name]

    async def existing(self) -> Sequence[str]:
        return [name for name in self.replicas if name not in self.stopped]

    async def start(self, names: Sequence[str]) -> None:
        self.ordered += names

    async def stop(self, name: str) -> None:
        self.stopped.append(name)

    async def failed(self, names: Sequence[str]) -> Mapping[str, str]:
        return {name: why for name, why in self.broken.items() if name in names}


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def kept(
    pool: Pool, starter: FakeStarter | None = None
) -> AsyncIterator[tuple[Dispatcher, FakeStarter, Autoscaler, Clock]]:
    clock = Clock()
    starter = starter or FakeStarter()
    dispatcher = Dispatcher([], clock=clock)
    dispatcher.start()
    keeper = Autoscaler(pool, dispatcher, starter, clock, now=clock)
    try:
        yield dispatcher, starter, keeper, clock
    finally:
        for one in starter.replicas.values():
            one.go.set()
        await keeper.close()
        await dispatcher.close()


async def up(dispatcher: Dispatcher, starter: FakeStarter, name: str) -> None:
    starter.replicas[name].up.set()
    await until(lambda: any(m.id == name and m.is_up for m in dispatcher.members()))


def events_of(keeper: Autoscaler) -> list[tuple[str, str]]:
    return [(event["what"], event["replica"]) for event in keeper.status()["events"]]


async def test_a_sleeping_pool_wakes_draws_and_sleeps_again() -> None:
    async with kept(Pool("a", queue_size=1, max=4, idle_s=30)) as (room, starter, keeper, clock):
        await keeper.look()
        assert starter.ordered == []
        generated = [asyncio.create_task(room.submit(submission(str(i)))) for i in range(10)]
        await until(lambda: room.waiting == 10)
        await keeper.look()
        assert starter.ordered == ["a-0", "a-1", "a-2", "a-3"]
        status = keeper.status()
        assert status["waiting"] == 10
        assert status["starting"]["phase"] == "node"
        for name in starter.ordered:
            await up(room, starter, name)
        await asyncio.gather(*generated)
        await keeper.look()
        assert [what for what, _ in events_of(keeper)] == ["ordered"] * 4 + ["ready"] * 4
        clock.now_s = 29.0
        await keeper.look()
        assert starter.stopped == []
        clock.now_s = 31.0
        await keeper.look()
        await until(lambda: sorted(starter.stopped) == starter.ordered)
        assert room.members() == []
        assert [what for what, _ in events_of(keeper)][-4:] == ["released"] * 4
        # Asleep, and woken by one request.
        again = asyncio.create_task(room.submit(submission("again")))
        await until(lambda: room.waiting == 1)
        await keeper.look()
        assert starter.ordered[4:] == ["a-4"]
        await up(room, starter, "a-4")
        await again


async def test_a_phase_is_timed_and_told() -> None:
    async with kept(Pool("a", min=1)) as (room, starter, keeper, clock):
        await keeper.look()
        for at_s, phase in ((3.0, "process"), (5.0, "model"), (6.0, "warm-up")):
            clock.now_s = at_s
            keeper.told("a-0", phase, at_s)  # type: ignore[arg-type]
        clock.now_s = 6.5
        (replica,) = keeper.status()["replicas"]
        assert replica["phase"] == keeper.status()["starting"]["phase"] == "warm-up"
        clock.now_s = 7.0
        await up(room, starter, "a-0")
        await keeper.look()
        (replica,) = keeper.status()["replicas"]
        assert replica["start_s"] == {"node": 3.0, "process": 2.0, "model": 1.0, "warm-up": 1.0}
        assert keeper.status()["starting"] is None


async def test_what_draws_is_not_stopped_and_gets_nothing_new_once_it_leaves() -> None:
    async with kept(Pool("a", min=2, max=2, idle_s=10)) as (room, starter, keeper, clock):
        await keeper.look()
        for name in ("a-0", "a-1"):
            starter.replicas[name].go.clear()
            await up(room, starter, name)
        result = asyncio.create_task(room.submit(submission("r")))
        await until(lambda: starter.replicas["a-0"].started or starter.replicas["a-1"].started)
        busy = "a-0" if starter.replicas["a-0"].started else "a-1"
        idle = "a-1" if busy == "a-0" else "a-0"
        keeper.pool = replace(keeper.pool, min=0)
        clock.now_s = 20.0
        await keeper.look()
        await until(lambda: starter.stopped == [idle])
        leaving = asyncio.create_task(room.remove(busy))
        await asyncio.sleep(0)
        late = asyncio.create_task(room.submit(submission("late")))
        await until(lambda: room.waiting == 1)
        assert not leaving.done()
        starter.replicas[busy].go.set()
        assert (await result).images
        await leaving
        assert starter.replicas[busy].started == ["r"]
        late.cancel()
        await asyncio.wait([late])


async def test_a_start_that_fails_is_given_up_and_tried_again_later() -> None:
    async with kept(Pool("a", max=2)) as (room, starter, keeper, clock):
        waiting = asyncio.create_task(room.submit(submission("r")))
        await until(lambda: room.waiting == 1)
        await keeper.look()
        starter.broken["a-0"] = "Traceback …\nTierUnusable: no room"
        clock.now_s = 3.0
        await keeper.look()
        assert starter.stopped == ["a-0"]
        keeper.told("a-0", "model", 3.0)  # its process was about to say so
        assert keeper.status()["replicas"] == []
        assert events_of(keeper)[-1] == ("failed", "a-0")
        assert keeper.status()["events"][-1]["details"] == {"reason": "TierUnusable: no room"}
        assert starter.ordered == ["a-0"]
        clock.now_s = 9.0
        await keeper.look()
        assert starter.ordered == ["a-0", "a-1"]
        await up(room, starter, "a-1")
        await waiting


async def test_a_new_keeper_takes_over_what_is_there() -> None:
    starter = FakeStarter()
    starter.client("a-0")
    starter.client("a-7")
    async with kept(Pool("a", min=3, max=3), starter) as (room, _, keeper, _):
        keeping = asyncio.create_task(keeper.run())
        await until(lambda: len(starter.ordered) == 1)
        assert not {"a-0", "a-7"} & {*starter.ordered}
        assert len(room.members()) == 3
        replicas = {replica["id"]: replica for replica in keeper.status()["replicas"]}
        assert replicas["a-7"]["start_s"] == {}  # nobody knows when that began
        await up(room, starter, "a-7")
        await keeper.look()
        assert ("ready", "a-7") not in events_of(keeper)
        keeping.cancel()
        await asyncio.wait([keeping])


async def test_the_keeper_goes_on_when_the_starter_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it ordered is given up, and ordered again."""
    starter = FakeStarter()
    async with kept(Pool("a", min=1), starter) as (_, _, keeper, clock):
        pause = asyncio.sleep
        attempts: list[str] = []

        async def away(names: Sequence[str]) -> None:
            attempts.extend(names)
            raise ConnectionError("Ray is away")

        monkeypatch.setattr(starter, "start", away)
        monkeypatch.setattr(asyncio, "sleep", lambda _: pause(0))
        keeping = asyncio.create_task(keeper.run())
        await until(lambda: attempts == ["a-0"])
        starter.broken["a-0"] = "Ray Serve does not know it"
        clock.now_s = 3.0
        await until(lambda: starter.stopped == ["a-0"])
        clock.now_s = 9.0
        await until(lambda: attempts == ["a-0", "a-1"])
        keeping.cancel()
        await asyncio.wait([keeping])


async def test_renewal_replaces_one_after_another_with_a_spare_where_there_is_room() -> None:
    async with kept(Pool("a", min=2, max=3)) as (room, starter, keeper, _):
        await keeper.look()
        for name in ("a-0", "a-1"):
            await up(room, starter, name)
        await keeper.look()
        starter.replicas["a-0"].go.clear()
        starter.replicas["a-1"].go.clear()
        result = [asyncio.create_task(room.submit(submission(str(i)))) for i in range(4)]
        await until(lambda: all(member.running for member in room.members()))
        keeper.renew()
        await keeper.look()
        assert starter.ordered == ["a-0", "a-1", "a-2"]  # the spare
        assert starter.stopped == []
        await keeper.look()
        assert len(starter.ordered) == 3
        await up(room, starter, "a-2")
        await keeper.look()
        await keeper.look()
        assert len(room.members()) == 2
        assert starter.stopped == []  # it draws
        for one in starter.replicas.values():
            one.go.set()
        await asyncio.gather(*result)
        await until(lambda: len(starter.stopped) == 1)
        await keeper.look()
        assert len(starter.ordered) == 4
        await up(room, starter, "a-3")
        await keeper.look()
        await until(lambda: len(starter.stopped) == 2)
        await keeper.look()
        assert sorted(starter.stopped) == ["a-0", "a-1"]
        assert sorted(member.id for member in room.members()) == ["a-2", "a-3"]
        assert len(starter.ordered) == 4


async def test_renewal_without_room_for_a_spare_misses_one_at_a_time() -> None:
    async with kept(Pool("a", min=2, max=2)) as (room, starter, keeper, _):
        await keeper.look()
        for name in ("a-0", "a-1"):
            await up(room, starter, name)
        await keeper.look()
        keeper.renew()
        for new in ("a-2", "a-3"):
            await keeper.look()
            await until(lambda: len(starter.stopped) == len(starter.ordered) - 1)
            await keeper.look()
            await keeper.look()
            assert starter.ordered[-1] == new
            assert len(starter.stopped) == len(starter.ordered) - 2
            await up(room, starter, new)
        await keeper.look()
        assert starter.stopped == ["a-0", "a-1"]


@pytest.mark.parametrize("largest", [2, 3])
async def test_a_renewal_whose_new_ones_do_not_start_ends_and_spares_the_rest(largest: int) -> None:
    """Code that cannot start must not take the pool with it."""
    async with kept(Pool("a", min=2, max=largest)) as (room, starter, keeper, clock):
        await keeper.look()
        for name in ("a-0", "a-1"):
            await up(room, starter, name)
        starter.broken = {f"a-{index}": "ImportError: new code" for index in range(2, 50)}
        keeper.renew()
        for _ in range(600):
            clock.now_s += 1.0
            await keeper.look()
            await asyncio.sleep(0)
        alive = [member for member in room.members() if member.is_up]
        assert len(alive) == (1 if largest == 2 else 2)
        assert len(starter.stopped) < len(starter.ordered)
        assert keeper.status()["outdated"] == []


async def test_a_renewal_does_not_wait_for_ever_for_a_gpu_more_than_it_has() -> None:
    async with kept(Pool("a", min=2, max=3, idle_s=1e6)) as (room, starter, keeper, clock):
        await keeper.look()
        for name in ("a-0", "a-1"):
            await up(room, starter, name)
        await keeper.look()
        keeper.renew()
        await keeper.look()
        assert starter.ordered[2:] == ["a-2"]  # and there is no GPU for it
        clock.now_s = 500.0
        await keeper.look()
        assert starter.stopped == []
        assert keeper.status()["outdated"] == ["a-0", "a-1"]
        clock.now_s = 1200.0
        await keeper.look()
        await until(lambda: starter.stopped == ["a-2"])
        for new in ("a-3", "a-4"):  # without it, one at a time
            async with asyncio.timeout(10):
                while starter.ordered[-1] != new:
                    await keeper.look()
            assert len(starter.stopped) == len(starter.ordered) - 2
            await up(room, starter, new)
        await keeper.look()
        assert starter.stopped == ["a-2", "a-0", "a-1"]
        assert keeper.status()["outdated"] == []


async def test_one_that_was_up_and_does_not_come_back_is_given_up() -> None:
    async with kept(Pool("a", min=1, max=1)) as (room, starter, keeper, clock):
        await keeper.look()
        await keeper.look()
        await up(room, starter, "a-0")
        clock.now_s = 900.0
        await keeper.look()
        replica = starter.replicas["a-0"]
        replica.up.clear()
        replica.fail_with = ReplicaLost("it died")
        asked = asyncio.create_task(room.submit(submission("r", timeout_s=1e6)))
        await until(lambda: not room.members()[0].is_up)
        for clock.now_s in (1000.0, 2799.0):  # since it is down, not since it was ordered
            await keeper.look()
            assert starter.stopped == []
        clock.now_s = 2801.1
        await keeper.look()
        assert starter.stopped == ["a-0"]
        assert events_of(keeper)[-1] == ("failed", "a-0")
        clock.now_s += 10.0
        await keeper.look()
        assert starter.ordered == ["a-0", "a-1"]
        asked.cancel()
