"""What followers of a dispatcher's requests learn, and cancellation by job."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from serving.errors import Cancelled, ReplicaLost
from serving.generation.events import Assigned, Queued, Starting, Step, decode, encode
from serving.generation.following import Followers
from serving.generation.submission import Cancellation
from serving.in_process import LocalEvents
from serving.pool.fakes import FakeReplica
from tests.serving.generation.test_following import Reader
from tests.serving.pool.test_dispatcher import running_dispatcher, submission, until

STEP = Step(3, 10)


async def test_a_request_is_followed_from_the_queue_to_its_steps() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(replica) as dispatcher:
        followers = Followers(LocalEvents(dispatcher.announcer.following))
        reader = Reader(followers, "job")
        before = [asyncio.create_task(dispatcher.submit(submission(str(i)))) for i in range(2)]
        await until(lambda: len(replica.started) == 2)
        ours = asyncio.create_task(dispatcher.submit(replace(submission("ours"), job_id="job")))
        await until(lambda: bool(reader.got))
        queued = reader.events[0]
        assert isinstance(queued, Queued)
        assert queued.position == 0
        assert queued.expected_s is not None
        replica.go.set()
        await asyncio.gather(*before, ours)
        await until(lambda: Assigned("a", 1) in reader.events)
        assert replica.details == {"0": "nothing", "1": "nothing", "ours": "steps"}
        replica.forward["ours"](encode(STEP))
        await until(lambda: STEP in reader.events)
        await reader.end()


async def test_a_follower_that_comes_late_gets_the_present_state() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    replica.last_step = encode(STEP)
    async with running_dispatcher(replica) as dispatcher:
        requests = [asyncio.create_task(dispatcher.submit(submission(str(i)))) for i in range(4)]
        await until(lambda: dispatcher.status().waiting == 2)
        states = {key: await dispatcher.announcer.snapshot(key) for key in ("0", "3", "none")}
        assert [decode(event) for event in states["0"]] == [Assigned("a", 1), STEP]
        queued = decode(states["3"][0])
        assert isinstance(queued, Queued)
        assert queued.position == 1
        assert states["none"] == ()
        followers = Followers(LocalEvents(dispatcher.announcer.following))
        reader = Reader(followers, "0", "previews")
        await until(lambda: reader.events == [Assigned("a", 1), STEP])
        assert replica.details["0"] == "previews"
        await reader.end()
        await until(lambda: replica.details == {"0": "nothing", "1": "nothing"})
        replica.go.set()
        await asyncio.gather(*requests)


async def test_a_pool_that_wakes_is_announced_until_it_is_awake() -> None:
    replica = FakeReplica("a")
    async with running_dispatcher(replica) as dispatcher:
        replica.go.clear()
        announcer = dispatcher.announcer
        reader = Reader(Followers(LocalEvents(announcer.following)), "3")
        requests = [asyncio.create_task(dispatcher.submit(submission(str(i)))) for i in range(4)]
        await until(lambda: len(reader.got) > 0)
        phases = [Starting("p", "node", {"node": 0.1}), Starting("p", "model", {"node": 0.5})]
        for phase in phases:
            announcer.starting = lambda phase=phase: phase  # type: ignore[misc]
            announcer.look()
            announcer.look()
        announcer.starting = lambda: None
        announcer.look()
        await until(lambda: len([e for e in reader.events if isinstance(e, Starting)]) == 2)
        assert [e for e in reader.events if isinstance(e, Starting)] == phases
        replica.go.set()
        await asyncio.gather(*requests)
        await reader.end()


async def test_another_attempt_is_announced() -> None:
    first, second = FakeReplica("a"), FakeReplica("b")
    first.fail_with = ReplicaLost("gone")
    first.keys.add("lora")
    async with running_dispatcher(first, second) as dispatcher:
        reader = Reader(Followers(LocalEvents(dispatcher.announcer.following)), "r")
        await until(lambda: dispatcher.announcer.following.followed() == ["r"])
        await dispatcher.submit(submission("r", lora="lora"))
        await until(lambda: len(reader.got) == 2)
        assert reader.events == [Assigned("a", 1), Assigned("b", 2)]
        await reader.end()


async def test_a_job_is_cancelled_wherever_it_is() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(replica) as dispatcher:
        tasks = [
            asyncio.create_task(
                dispatcher.submit(replace(submission(str(i)), job_id=f"job {i}", run_id=f"run {i}"))
            )
            for i in range(4)
        ]
        await until(lambda: dispatcher.status().waiting == 2 and len(replica.started) == 2)
        for key in ("0", "3", "later"):
            dispatcher.cancel(Cancellation(f"job {key}", f"run {key}"))
        dispatcher.cancel(Cancellation("job 1", "an earlier run"))
        for index, has_run in ((0, True), (3, False)):
            with pytest.raises(Cancelled) as cancelled:
                await tasks[index]
            assert (cancelled.value.engine_s > 0) == has_run
        with pytest.raises(Cancelled):
            await dispatcher.submit(replace(submission("later"), run_id="run later"))
        await until(lambda: dispatcher.status().waiting == 0)
        assert replica.cancelled == ["0"]
        replica.go.set()
        await asyncio.gather(tasks[1], tasks[2])
        assert sorted(replica.started) == ["0", "1", "2"]
