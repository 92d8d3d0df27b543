"""The waiting room over fake replicas: slots, retries, cancellation, deadlines, fairness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from assets.content import Blob
from assets.recipe import LoraUse, Recipe
from router.admission import QueueLimits
from serving.errors import (
    DeadlineExceeded,
    EngineBroke,
    GenerationFailed,
    NotFinite,
    Quarantined,
    Refused,
    ReplicaDied,
    ReplicaLost,
)
from serving.generation.contract import (
    ClusterDirectives,
    GenerationResult,
    GenerationTask,
    ReplicaReport,
    Swap,
    Timings,
)
from serving.generation.submission import Submission
from serving.pool.dispatcher import Dispatcher

BLOB = Blob("base", "", 1)


class FakeReplica:
    """Draws when told to; the test decides when and how."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.up = asyncio.Event()
        self.up.set()
        self.go = asyncio.Event()
        self.go.set()
        self.fail_with: Exception | None = None
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.keys: set[str] = set()
        self.directives = ClusterDirectives()
        self.warmed: list[Blob] = []

    async def describe(self, directives: ClusterDirectives) -> ReplicaReport:
        self.directives = directives
        await self.up.wait()
        return self.report()

    def report(self) -> ReplicaReport:
        keys = frozenset(self.keys)
        return ReplicaReport(self.id, "node", 1, {"gpu": keys}, keys, keys & {BLOB.key}, 2)

    async def forget(self, keys: Collection[str]) -> ReplicaReport:
        self.keys -= set(keys)
        return self.report()

    async def warm(self, blobs: Sequence[Blob]) -> str:
        self.warmed += blobs
        return "store"

    async def generate(self, request: GenerationTask) -> tuple[GenerationResult, ReplicaReport]:
        self.started.append(request.id)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        if self.fail_with is not None:
            raise self.fail_with
        self.keys |= {blob.key for blob in request.recipe.blobs()}
        result = GenerationResult((b"x",), self.id, (), Swap(0, 0, 0, 0), Timings(denoise_ms=1.0))
        return result, self.report()


def submission(
    name: str, tenant: str = "t", timeout_s: float = 30.0, lora: str | None = None
) -> Submission:
    loras = (LoraUse(Blob(lora, "", 10**9), 1.0),) if lora else ()
    recipe = Recipe(BLOB, BLOB, BLOB, BLOB, loras)
    request = GenerationTask(name, recipe, "p", 8, 8, (1,), steps=1)
    return Submission(request, tenant, 1.0, timeout_s, frozenset({lora} if lora else ()))


@asynccontextmanager
async def dispatcher(
    *replicas: FakeReplica, limits: QueueLimits | None = None
) -> AsyncIterator[Dispatcher]:
    room = Dispatcher(replicas, limits)
    room.start()
    await asyncio.sleep(0)
    await until(lambda: all(r["state"] == "up" for r in room.status()["replicas"]))
    try:
        yield room
    finally:
        await room.close()


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0)


def idle(room: Dispatcher) -> bool:
    status = room.status()
    return status["waiting"] == 0 and all(r["running"] == 0 for r in status["replicas"])


async def test_draws_and_gives_the_slot_back() -> None:
    async with dispatcher(FakeReplica("a")) as room:
        for index in range(10):
            assert (await room.submit(submission(str(index)))).images == (b"x",)
        assert idle(room)


async def test_at_most_two_at_a_replica_and_the_rest_wait() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with dispatcher(replica) as room:
        tasks = [asyncio.create_task(room.submit(submission(str(i)))) for i in range(5)]
        await until(lambda: len(replica.started) == 2)
        assert room.status()["waiting"] == 3
        replica.go.set()
        await asyncio.gather(*tasks)
        assert idle(room)


async def test_a_lost_replica_is_retried_elsewhere() -> None:
    bad, good = FakeReplica("a"), FakeReplica("b")
    bad.fail_with = ReplicaLost("died")
    async with dispatcher(bad, good) as room:
        bad.up.clear()
        results = await asyncio.gather(*(room.submit(submission(str(i))) for i in range(6)))
        assert {result.replica for result in results} == {"b"}
        assert bad.started
        bad.fail_with = None
        bad.up.set()
        await until(lambda: room.status()["replicas"][0]["state"] == "up")


async def test_it_waits_for_a_replica_to_come_back() -> None:
    only = FakeReplica("a")
    only.fail_with = ReplicaLost("died")
    async with dispatcher(only) as room:
        only.up.clear()
        task = asyncio.create_task(room.submit(submission("r")))
        await until(lambda: room.status()["replicas"][0]["state"] == "down")
        only.fail_with = None
        only.up.set()
        assert (await task).replica == "a"


async def test_it_gives_up_after_three_losses() -> None:
    only = FakeReplica("a")
    only.fail_with = ReplicaLost("died")
    async with dispatcher(only) as room:
        with pytest.raises(ReplicaLost):
            await room.submit(submission("r"))
        assert len(only.started) == 3
        assert idle(room)


async def test_an_error_of_the_engine_is_not_retried() -> None:
    replica = FakeReplica("a")
    replica.fail_with = GenerationFailed("not finite")
    async with dispatcher(replica, FakeReplica("b")) as room:
        with pytest.raises(GenerationFailed):
            await room.submit(submission("r"))
        assert idle(room)


async def test_cancelled_while_waiting_and_while_drawing() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with dispatcher(replica) as room:
        tasks = [asyncio.create_task(room.submit(submission(str(i)))) for i in range(3)]
        await until(lambda: len(replica.started) == 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: idle(room))
        assert sorted(replica.cancelled) == ["0", "1"]
        replica.go.set()
        assert (await room.submit(submission("next"))).images


async def test_abandoned_in_the_turn_in_which_it_was_assigned() -> None:
    """Its attempt is cancelled before its first step; the slot comes back all the same."""
    replica = FakeReplica("a")
    replica.go.clear()
    async with dispatcher(replica) as room:
        tasks = [asyncio.create_task(room.submit(submission(str(i)))) for i in range(3)]
        await until(lambda: len(replica.started) == 2)
        tasks[2].cancel()
        tasks[0].cancel()
        await asyncio.gather(tasks[0], tasks[2], return_exceptions=True)
        direct = asyncio.create_task(room.submit(submission("direct")))
        await asyncio.sleep(0)
        direct.cancel()
        replica.go.set()
        await asyncio.gather(direct, tasks[1], return_exceptions=True)
        await until(lambda: idle(room))


async def test_deadline() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with dispatcher(replica) as room:
        with pytest.raises(DeadlineExceeded):
            await room.submit(submission("r", timeout_s=0.05))
        await until(lambda: idle(room))
        assert replica.cancelled == ["r"]


async def test_engine_time_is_counted_where_the_request_is_at_fault() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with dispatcher(replica) as room:
        first = asyncio.create_task(room.submit(submission("first", timeout_s=0.1)))
        await until(lambda: replica.started)
        behind = asyncio.create_task(room.submit(submission("behind", timeout_s=0.05)))
        waiting = asyncio.create_task(room.submit(submission("waiting", timeout_s=0.05)))
        late = await asyncio.gather(first, behind, waiting, return_exceptions=True)
        assert all(isinstance(error, DeadlineExceeded) for error in late)
        assert [error.attempts for error in late] == [1, 1, 0]  # type: ignore[union-attr]
        times = [error.engine_s for error in late]  # type: ignore[union-attr]
        assert times[0] >= 0.09
        assert times[1:] == [0.0, 0.0]  # behind the first, no engine was theirs
        await until(lambda: idle(room))
        replica.go.set()
        for error, is_counted in ((NotFinite("n"), True), (GenerationFailed("d"), False)):
            replica.fail_with = error
            with pytest.raises(type(error)) as caught:
                await room.submit(submission(type(error).__name__))
            assert (caught.value.engine_s > 0) == is_counted


async def test_the_same_id_joins_the_first() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with dispatcher(replica) as room:
        both = [asyncio.create_task(room.submit(submission("same"))) for _ in range(2)]
        await until(lambda: replica.started)
        replica.go.set()
        await asyncio.gather(*both)
        assert replica.started == ["same"]


async def test_refused_early_for_one_tenant_only() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with dispatcher(replica, limits=QueueLimits(per_tenant=1, total=10)) as room:
        tasks = [asyncio.create_task(room.submit(submission(str(i)))) for i in range(3)]
        await until(lambda: room.status()["waiting"] == 1)
        with pytest.raises(Refused) as caught:
            await room.submit(submission("more"))
        assert caught.value.status == 429
        other = asyncio.create_task(room.submit(submission("other", tenant="u")))
        await until(lambda: room.status()["waiting"] == 2)
        replica.go.set()
        await asyncio.gather(*tasks, other)


async def test_a_full_queue_gives_the_place_of_whoever_has_most_to_the_others() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with dispatcher(replica, limits=QueueLimits(per_tenant=10, total=3)) as room:
        tasks = [asyncio.create_task(room.submit(submission(str(i)))) for i in range(5)]
        await until(lambda: room.status()["waiting"] == 3)
        other = asyncio.create_task(room.submit(submission("other", tenant="u")))
        with pytest.raises(Refused) as caught:
            await tasks[-1]
        assert caught.value.status == 429
        replica.go.set()
        await asyncio.gather(*tasks[:-1], other)
        assert "4" not in replica.started


async def test_a_warm_replica_is_preferred_once_it_is_known() -> None:
    first, second = FakeReplica("a"), FakeReplica("b")
    async with dispatcher(first, second) as room:
        second.keys.add("lora")
        await room.submit(submission("0", lora="lora"))
        homes = [(await room.submit(submission(f"n{i}", lora="lora"))).replica for i in range(5)]
        assert len(set(homes)) == 1


@pytest.mark.parametrize("fatal", [ReplicaDied("died"), EngineBroke("odd")])
async def test_an_asset_that_replicas_die_of_is_quarantined(fatal: Exception) -> None:
    """After two, and those that wait for it already kill nobody any more; whatever has been
    drawn well is above suspicion, and so is what only lost its replica."""
    replicas = [FakeReplica(name) for name in ("a", "b", "c")]
    async with dispatcher(*replicas) as room:
        await room.submit(submission("0", lora="good"))
        for replica in replicas:
            replica.fail_with = fatal
        with pytest.raises(Quarantined) as caught:
            await room.submit(submission("1", lora="poison"))
        assert caught.value.blamed == ("poison",)
        assert sum("1" in replica.started for replica in replicas) == 2
        with pytest.raises(type(fatal)):
            await room.submit(submission("2", lora="good"))
        for replica in replicas:
            replica.fail_with = None
        with pytest.raises(Quarantined, match="poison"):
            await room.submit(submission("3", lora="poison"))
        await room.submit(submission("4", lora="good"))
        assert room.status()["quarantined"] == 1
        assert idle(room)


async def test_those_that_wait_for_a_quarantined_asset_are_told_at_once() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with dispatcher(replica) as room:
        many = [asyncio.create_task(room.submit(submission(str(i), lora="x"))) for i in range(6)]
        await until(lambda: len(replica.started) == 2)
        replica.fail_with = EngineBroke("odd")
        replica.go.set()
        answers = await asyncio.gather(*many, return_exceptions=True)
        assert all(isinstance(answer, Quarantined) for answer in answers)
        assert set(replica.started) == {"0", "1"}
        assert idle(room)


async def test_a_replica_that_only_does_not_answer_casts_no_suspicion() -> None:
    replicas = [FakeReplica("a"), FakeReplica("b")]
    async with dispatcher(*replicas) as room:
        for replica in replicas:
            replica.fail_with = ReplicaLost("draining")
        with pytest.raises(ReplicaLost):
            await room.submit(submission("1", lora="x"))
        assert room.status()["quarantined"] == 0


async def test_a_capped_tenant_waits_for_its_own_and_others_do_not() -> None:
    replicas = [FakeReplica(name) for name in "ab"]
    for replica in replicas:
        replica.go.clear()
    async with dispatcher(*replicas) as room:
        capped = [replace(submission(f"c{i}", "capped"), max_concurrent_images=1) for i in range(3)]
        tasks = [asyncio.create_task(room.submit(one)) for one in capped]
        await until(lambda: sum(len(r.started) for r in replicas) == 1)
        tasks.append(asyncio.create_task(room.submit(submission("free", "other"))))
        await until(lambda: any("free" in r.started for r in replicas))
        assert sum(len(r.started) for r in replicas) == 2
        for replica in replicas:
            replica.go.set()
        await asyncio.gather(*tasks)
        assert idle(room)


async def test_what_nobody_may_ask_for_is_forgotten_everywhere() -> None:
    replicas = [FakeReplica(name) for name in "ab"]
    async with dispatcher(*replicas) as room:
        for replica in replicas:
            replica.keys |= {"kept", "dead"}
        await asyncio.gather(*(room.submit(submission(str(index))) for index in range(4)))
        await room.holdings.forget({"dead", "base"})
        assert all(replica.keys == {"kept"} for replica in replicas)
        assert room.holdings.resident() == {"kept"}
        assert await room.holdings.warm((Blob("kept", "", 1),)) == {"a": "store", "b": "store"}


async def test_a_replica_that_hangs_loses_its_request_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.pool.dispatcher._WATCH_S", 0.01)
    monkeypatch.setattr("serving.pool.dispatcher.PATIENCE_S", 0.05)
    stuck, good = FakeReplica("a"), FakeReplica("b")
    stuck.go.clear()
    good.go.clear()
    async with dispatcher(stuck, good) as room:
        waiting = asyncio.create_task(room.submit(submission("r")))
        await until(lambda: stuck.started or good.started)
        held, other = (stuck, good) if stuck.started else (good, stuck)
        other.go.set()
        held.up.clear()  # it answers nothing any more
        assert (await waiting).replica == other.id
        assert held.cancelled == ["r"]
        await until(lambda: idle(room))


async def test_the_higher_priority_of_ones_own_goes_first() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with dispatcher(replica) as room:
        first = [asyncio.create_task(room.submit(submission(name))) for name in ("0", "1")]
        await until(lambda: len(replica.started) == 2)
        later = [
            asyncio.create_task(room.submit(replace(submission(name), priority=priority)))
            for name, priority in (("low", -1), ("usual", 0), ("high", 1))
        ]
        await until(lambda: room.status()["waiting"] == 3)
        replica.go.set()
        await asyncio.gather(*first, *later)
        assert replica.started[2:] == ["high", "usual", "low"]


async def test_what_hangs_and_is_given_up_is_not_drawn_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client leaves in the very moment in which its replica is found to hang."""
    stuck, other = FakeReplica("a"), FakeReplica("b")
    stuck.go.clear()
    other.up.clear()
    room = Dispatcher([stuck, other])
    room.start()
    await until(lambda: room.status()["replicas"][0]["state"] == "up")
    try:
        waiting = asyncio.create_task(room.submit(submission("r")))
        await until(lambda: stuck.started)
        room._hangs(room._states["a"])
        waiting.cancel()
        await asyncio.wait([waiting])
        other.up.set()
        await until(lambda: room.status()["replicas"][1]["state"] == "up")
        assert room.status()["waiting"] == 0
        assert other.started == []
    finally:
        await room.close()


async def test_what_waits_is_brought_near_and_popular_things_are_held() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with dispatcher(replica) as room:
        loras = ["lora", "lora", "lora", "other"]
        tasks = [
            asyncio.create_task(room.submit(submission(str(index), lora=lora)))
            for index, lora in enumerate(loras)
        ]
        await until(lambda: len(replica.started) == 2)
        await until(lambda: [blob.key for blob in replica.warmed] == ["other"])
        assert (
            room.holdings.directives().pins is None
        )  # nobody has said yet, and what is held stays so
        room.holdings.hold({"pinned"})
        directives = room.holdings.directives()
        assert directives.pins == {"lora": "popular", "pinned": "operator"}
        replica.go.set()
        await asyncio.gather(*tasks)
        assert room.holdings.residency(["lora", "nowhere"])["lora"].replicas == ("a",)
        assert "nowhere" not in room.holdings.residency(["lora", "nowhere"])


async def test_a_new_replica_is_sent_what_is_most_in_demand() -> None:
    first, new = FakeReplica("a"), FakeReplica("b")
    async with dispatcher(first) as room:
        for index, lora in enumerate(["cool"] * 3 + ["hot"] * 4 + ["cold"]):
            await room.submit(submission(str(index), lora=lora))
        room.add(new)
        await until(lambda: any(m.id == "b" and m.is_up for m in room.members()))
        await until(lambda: bool(new.warmed))
        keys = [blob.key for blob in new.warmed]
        assert keys[0] == BLOB.key  # the checkpoint before what comes on top of it
        assert keys[1:] == ["hot", "cool"]


async def test_who_joins_a_request_is_not_ended_by_the_first_ones_going() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with dispatcher(replica) as room:
        first = asyncio.create_task(room.submit(submission("1")))
        await until(lambda: replica.started == ["1"])
        second = asyncio.create_task(room.submit(submission("1")))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        replica.go.set()
        assert (await second).images == (b"x",)
        assert replica.started == ["1"]
        assert idle(room)


async def test_a_capped_tenants_request_keeps_its_place_when_its_replica_dies() -> None:
    replica, other = FakeReplica("a"), FakeReplica("b")
    replica.go.clear()
    other.go.clear()
    async with dispatcher(replica, other) as room:
        capped = [replace(submission(f"c{i}", "capped"), max_concurrent_images=1) for i in range(3)]
        tasks = [asyncio.create_task(room.submit(one)) for one in capped]
        await until(lambda: len(replica.started) + len(other.started) == 1)
        assert room.waiting == 0  # the rest could not be drawn, however many replicas there were
        assert room.status()["held"] == 2
        had, free = (replica, other) if replica.started else (other, replica)
        had.fail_with = ReplicaLost(had.id)
        had.go.set()
        await until(lambda: free.started == ["c0"])
        free.go.set()
        await asyncio.gather(*tasks)
        assert free.started == ["c0", "c1", "c2"]
