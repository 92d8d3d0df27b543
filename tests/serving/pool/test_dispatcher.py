"""The dispatcher over fake replicas: capacity, retries, cancellation, deadlines, fairness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from assets.content import Blob
from assets.recipe import LoraUse, Recipe
from router.admission import QueueLimits
from serving.errors import (
    DeadlineExceeded,
    GenerationFailed,
    NotFinite,
    Quarantined,
    Refused,
    ReplicaDied,
    ReplicaLost,
    UnexpectedEngineError,
)
from serving.generation.submission import Submission
from serving.pool.dispatcher import Dispatcher
from serving.pool.fakes import FakeReplica
from tests.support.generation import task_of

BLOB = Blob("base", "", 1)


def submission(
    name: str, tenant: str = "t", timeout_s: float = 30.0, lora: str | None = None
) -> Submission:
    loras = (LoraUse(Blob(lora, "", 10**9), 1.0),) if lora else ()
    recipe = Recipe(BLOB, BLOB, BLOB, BLOB, loras)
    request = task_of(name, recipe, "p", 8, 8, (1,), steps=1)
    return Submission(request, tenant, 1.0, timeout_s, frozenset({lora} if lora else ()))


@asynccontextmanager
async def running_dispatcher(
    *replicas: FakeReplica, limits: QueueLimits | None = None
) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(replicas, limits)
    dispatcher.start()
    await asyncio.sleep(0)
    await until(lambda: all(r.is_up for r in dispatcher.status().replicas))
    try:
        yield dispatcher
    finally:
        await dispatcher.close()


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0)


def idle(dispatcher: Dispatcher) -> bool:
    status = dispatcher.status()
    return status.waiting == 0 and all(r.running == 0 for r in status.replicas)


async def test_generates_and_frees_capacity() -> None:
    async with running_dispatcher(FakeReplica("a")) as dispatcher:
        for index in range(10):
            assert (await dispatcher.submit(submission(str(index)))).images == (b"x",)
        assert idle(dispatcher)


async def test_a_replica_gets_at_most_two_requests_and_the_rest_queue() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(replica) as dispatcher:
        tasks = [asyncio.create_task(dispatcher.submit(submission(str(i)))) for i in range(5)]
        await until(lambda: len(replica.started) == 2)
        assert dispatcher.status().waiting == 3
        replica.go.set()
        await asyncio.gather(*tasks)
        assert idle(dispatcher)


async def test_a_request_on_a_lost_replica_is_retried_elsewhere() -> None:
    bad, good = FakeReplica("a"), FakeReplica("b")
    bad.fail_with = ReplicaLost("died")
    async with running_dispatcher(bad, good) as dispatcher:
        bad.up.clear()
        results = await asyncio.gather(*(dispatcher.submit(submission(str(i))) for i in range(6)))
        assert {result.replica for result in results} == {"b"}
        assert bad.started
        bad.fail_with = None
        bad.up.set()
        await until(lambda: dispatcher.status().replicas[0].is_up)


async def test_a_request_waits_for_the_only_replica_to_restart() -> None:
    only = FakeReplica("a")
    only.fail_with = ReplicaLost("died")
    async with running_dispatcher(only) as dispatcher:
        only.up.clear()
        task = asyncio.create_task(dispatcher.submit(submission("r")))
        await until(lambda: not dispatcher.status().replicas[0].is_up)
        only.fail_with = None
        only.up.set()
        assert (await task).replica == "a"


async def test_a_request_fails_after_three_lost_replicas() -> None:
    only = FakeReplica("a")
    only.fail_with = ReplicaLost("died")
    async with running_dispatcher(only) as dispatcher:
        with pytest.raises(ReplicaLost):
            await dispatcher.submit(submission("r"))
        assert len(only.started) == 3
        assert idle(dispatcher)


async def test_an_engine_error_is_not_retried() -> None:
    replica = FakeReplica("a")
    replica.fail_with = GenerationFailed("not finite")
    async with running_dispatcher(replica, FakeReplica("b")) as dispatcher:
        with pytest.raises(GenerationFailed):
            await dispatcher.submit(submission("r"))
        assert idle(dispatcher)


async def test_cancellation_while_queued_and_while_generating() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(replica) as dispatcher:
        tasks = [asyncio.create_task(dispatcher.submit(submission(str(i)))) for i in range(3)]
        await until(lambda: len(replica.started) == 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: idle(dispatcher))
        assert sorted(replica.cancelled) == ["0", "1"]
        replica.go.set()
        assert (await dispatcher.submit(submission("next"))).images


async def test_cancellation_in_the_loop_iteration_of_the_assignment() -> None:
    """Cancelled before its task's first step, too, it frees capacity."""
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(replica) as dispatcher:
        tasks = [asyncio.create_task(dispatcher.submit(submission(str(i)))) for i in range(3)]
        await until(lambda: len(replica.started) == 2)
        tasks[2].cancel()
        tasks[0].cancel()
        await asyncio.gather(tasks[0], tasks[2], return_exceptions=True)
        direct = asyncio.create_task(dispatcher.submit(submission("direct")))
        await asyncio.sleep(0)
        direct.cancel()
        replica.go.set()
        await asyncio.gather(direct, tasks[1], return_exceptions=True)
        await until(lambda: idle(dispatcher))


async def test_a_request_past_its_deadline_is_cancelled() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(replica) as dispatcher:
        with pytest.raises(DeadlineExceeded):
            await dispatcher.submit(submission("r", timeout_s=0.05))
        await until(lambda: idle(dispatcher))
        assert replica.cancelled == ["r"]


async def test_engine_time_is_charged_only_when_the_request_is_at_fault() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(replica) as dispatcher:
        first = asyncio.create_task(dispatcher.submit(submission("first", timeout_s=0.1)))
        await until(lambda: replica.started)
        behind = asyncio.create_task(dispatcher.submit(submission("behind", timeout_s=0.05)))
        waiting = asyncio.create_task(dispatcher.submit(submission("waiting", timeout_s=0.05)))
        errors = await asyncio.gather(first, behind, waiting, return_exceptions=True)
        assert all(isinstance(error, DeadlineExceeded) for error in errors)
        assert [error.attempts for error in errors] == [1, 1, 0]  # type: ignore[union-attr]
        times = [error.engine_s for error in errors]  # type: ignore[union-attr]
        assert times[0] >= 0.09
        assert times[1:] == [0.0, 0.0]  # the engine worked on the first only
        await until(lambda: idle(dispatcher))
        replica.go.set()
        for error, is_counted in ((NotFinite("n"), True), (GenerationFailed("d"), False)):
            replica.fail_with = error
            with pytest.raises(type(error)) as caught:
                await dispatcher.submit(submission(type(error).__name__))
            assert (caught.value.engine_s > 0) == is_counted


async def test_a_second_submission_of_an_id_joins_the_first() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(replica) as dispatcher:
        both = [asyncio.create_task(dispatcher.submit(submission("same"))) for _ in range(2)]
        await until(lambda: replica.started)
        replica.go.set()
        await asyncio.gather(*both)
        assert replica.started == ["same"]


async def test_the_queue_limit_applies_per_tenant() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(
        replica, limits=QueueLimits(per_tenant=1, total=10)
    ) as dispatcher:
        tasks = [asyncio.create_task(dispatcher.submit(submission(str(i)))) for i in range(3)]
        await until(lambda: dispatcher.status().waiting == 1)
        with pytest.raises(Refused) as caught:
            await dispatcher.submit(submission("more"))
        assert caught.value.status == 429
        other = asyncio.create_task(dispatcher.submit(submission("other", tenant="u")))
        await until(lambda: dispatcher.status().waiting == 2)
        replica.go.set()
        await asyncio.gather(*tasks, other)


async def test_a_full_queue_displaces_the_tenant_with_the_largest_backlog() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(
        replica, limits=QueueLimits(per_tenant=10, total=3)
    ) as dispatcher:
        tasks = [asyncio.create_task(dispatcher.submit(submission(str(i)))) for i in range(5)]
        await until(lambda: dispatcher.status().waiting == 3)
        other = asyncio.create_task(dispatcher.submit(submission("other", tenant="u")))
        with pytest.raises(Refused) as caught:
            await tasks[-1]
        assert caught.value.status == 429
        replica.go.set()
        await asyncio.gather(*tasks[:-1], other)
        assert "4" not in replica.started


async def test_a_replica_that_holds_the_assets_is_preferred() -> None:
    first, second = FakeReplica("a"), FakeReplica("b")
    async with running_dispatcher(first, second) as dispatcher:
        second.keys.add("lora")
        await dispatcher.submit(submission("0", lora="lora"))
        replicas = [
            (await dispatcher.submit(submission(f"n{i}", lora="lora"))).replica for i in range(5)
        ]
        assert len(set(replicas)) == 1


@pytest.mark.parametrize("fatal", [ReplicaDied("died"), UnexpectedEngineError("odd")])
async def test_an_asset_that_kills_replicas_is_quarantined(fatal: Exception) -> None:
    """Quarantined after two deaths; never after a success."""
    replicas = [FakeReplica(name) for name in ("a", "b", "c")]
    async with running_dispatcher(*replicas) as dispatcher:
        await dispatcher.submit(submission("0", lora="good"))
        for replica in replicas:
            replica.fail_with = fatal
        with pytest.raises(Quarantined) as caught:
            await dispatcher.submit(submission("1", lora="poison"))
        assert caught.value.blamed == ("poison",)
        assert sum("1" in replica.started for replica in replicas) == 2
        with pytest.raises(type(fatal)):
            await dispatcher.submit(submission("2", lora="good"))
        for replica in replicas:
            replica.fail_with = None
        with pytest.raises(Quarantined, match="poison"):
            await dispatcher.submit(submission("3", lora="poison"))
        await dispatcher.submit(submission("4", lora="good"))
        assert dispatcher.status().quarantined == 1
        assert idle(dispatcher)


async def test_queued_requests_for_a_quarantined_asset_are_rejected_at_once() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(replica) as dispatcher:
        tasks = [
            asyncio.create_task(dispatcher.submit(submission(str(i), lora="x"))) for i in range(6)
        ]
        await until(lambda: len(replica.started) == 2)
        replica.fail_with = UnexpectedEngineError("odd")
        replica.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, Quarantined) for answer in answers)
        assert set(replica.started) == {"0", "1"}
        assert idle(dispatcher)


async def test_a_lost_replica_that_did_not_die_quarantines_nothing() -> None:
    replicas = [FakeReplica("a"), FakeReplica("b")]
    async with running_dispatcher(*replicas) as dispatcher:
        for replica in replicas:
            replica.fail_with = ReplicaLost("draining")
        with pytest.raises(ReplicaLost):
            await dispatcher.submit(submission("1", lora="x"))
        assert dispatcher.status().quarantined == 0


async def test_a_concurrency_limit_delays_only_its_own_tenant() -> None:
    replicas = [FakeReplica(name) for name in "ab"]
    for replica in replicas:
        replica.go.clear()
    async with running_dispatcher(*replicas) as dispatcher:
        capped = [replace(submission(f"c{i}", "capped"), max_concurrent_images=1) for i in range(3)]
        tasks = [asyncio.create_task(dispatcher.submit(request)) for request in capped]
        await until(lambda: sum(len(r.started) for r in replicas) == 1)
        tasks.append(asyncio.create_task(dispatcher.submit(submission("free", "other"))))
        await until(lambda: any("free" in r.started for r in replicas))
        assert sum(len(r.started) for r in replicas) == 2
        for replica in replicas:
            replica.go.set()
        await asyncio.gather(*tasks)
        assert idle(dispatcher)


async def test_forgotten_assets_are_deleted_on_every_replica() -> None:
    replicas = [FakeReplica(name) for name in "ab"]
    async with running_dispatcher(*replicas) as dispatcher:
        for replica in replicas:
            replica.keys |= {"kept", "dead"}
        await asyncio.gather(*(dispatcher.submit(submission(str(index))) for index in range(4)))
        await dispatcher.roster.residency.forget({"dead", "base"})
        assert all(replica.keys == {"kept"} for replica in replicas)
        assert dispatcher.roster.residency.resident() == {"kept"}
        assert await dispatcher.roster.residency.warm((Blob("kept", "", 1),)) == {
            "a": "store",
            "b": "store",
        }


async def test_the_request_of_a_hanging_replica_is_retried_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.pool.roster._WATCH_S", 0.01)
    monkeypatch.setattr("serving.pool.roster.REPORT_TIMEOUT_S", 0.05)
    stuck, good = FakeReplica("a"), FakeReplica("b")
    stuck.go.clear()
    good.go.clear()
    async with running_dispatcher(stuck, good) as dispatcher:
        waiting = asyncio.create_task(dispatcher.submit(submission("r")))
        await until(lambda: stuck.started or good.started)
        hanging, other = (stuck, good) if stuck.started else (good, stuck)
        other.go.set()
        hanging.up.clear()
        assert (await waiting).replica == other.id
        assert hanging.cancelled == ["r"]
        await until(lambda: idle(dispatcher))


async def test_a_tenants_requests_run_in_order_of_priority() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(replica) as dispatcher:
        first = [asyncio.create_task(dispatcher.submit(submission(name))) for name in ("0", "1")]
        await until(lambda: len(replica.started) == 2)
        later = [
            asyncio.create_task(dispatcher.submit(replace(submission(name), priority=priority)))
            for name, priority in (("low", -1), ("usual", 0), ("high", 1))
        ]
        await until(lambda: dispatcher.status().waiting == 3)
        replica.go.set()
        await asyncio.gather(*first, *later)
        assert replica.started[2:] == ["high", "usual", "low"]


async def test_a_cancelled_request_of_a_hanging_replica_is_not_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled as the hang is detected."""
    stuck, other = FakeReplica("a"), FakeReplica("b")
    stuck.go.clear()
    other.up.clear()
    dispatcher = Dispatcher([stuck, other])
    dispatcher.start()
    await until(lambda: dispatcher.status().replicas[0].is_up)
    try:
        waiting = asyncio.create_task(dispatcher.submit(submission("r")))
        await until(lambda: stuck.started)
        dispatcher._attempts.hangs(dispatcher.roster.states["a"])
        waiting.cancel()
        await asyncio.wait([waiting])
        other.up.set()
        await until(lambda: dispatcher.status().replicas[1].is_up)
        assert dispatcher.status().waiting == 0
        assert other.started == []
    finally:
        await dispatcher.close()


async def test_queued_assets_are_prefetched_and_popular_assets_are_pinned() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(replica) as dispatcher:
        loras = ["lora", "lora", "lora", "other"]
        tasks = [
            asyncio.create_task(dispatcher.submit(submission(str(index), lora=lora)))
            for index, lora in enumerate(loras)
        ]
        await until(lambda: len(replica.started) == 2)
        await until(lambda: [blob.key for blob in replica.warmed] == ["other"])
        assert dispatcher.roster.residency.directives().pins is None  # pins are unknown yet
        dispatcher.roster.residency.hold({"pinned"})
        directives = dispatcher.roster.residency.directives()
        assert directives.pins == {"lora": "popular", "pinned": "operator"}
        replica.go.set()
        await asyncio.gather(*tasks)
        assert dispatcher.roster.residency.residency(["lora", "nowhere"])["lora"].replicas == ("a",)
        assert "nowhere" not in dispatcher.roster.residency.residency(["lora", "nowhere"])


async def test_a_new_replica_prefetches_the_most_popular_assets() -> None:
    first, new = FakeReplica("a"), FakeReplica("b")
    async with running_dispatcher(first) as dispatcher:
        for index, lora in enumerate(["cool"] * 3 + ["hot"] * 4 + ["cold"]):
            await dispatcher.submit(submission(str(index), lora=lora))
        dispatcher.roster.add(new)
        await until(lambda: any(m.id == "b" and m.is_up for m in dispatcher.roster.members()))
        await until(lambda: bool(new.warmed))
        keys = [blob.key for blob in new.warmed]
        assert keys[0] == BLOB.key  # the checkpoint comes first
        assert keys[1:] == ["hot", "cool"]


async def test_a_joined_request_survives_the_cancellation_of_the_first_submitter() -> None:
    replica = FakeReplica("a")
    replica.go.clear()
    async with running_dispatcher(replica) as dispatcher:
        first = asyncio.create_task(dispatcher.submit(submission("1")))
        await until(lambda: replica.started == ["1"])
        second = asyncio.create_task(dispatcher.submit(submission("1")))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        replica.go.set()
        assert (await second).images == (b"x",)
        assert replica.started == ["1"]
        assert idle(dispatcher)


async def test_a_limited_tenants_request_keeps_its_position_when_its_replica_dies() -> None:
    replica, other = FakeReplica("a"), FakeReplica("b")
    replica.go.clear()
    other.go.clear()
    async with running_dispatcher(replica, other) as dispatcher:
        capped = [replace(submission(f"c{i}", "capped"), max_concurrent_images=1) for i in range(3)]
        tasks = [asyncio.create_task(dispatcher.submit(request)) for request in capped]
        await until(lambda: len(replica.started) + len(other.started) == 1)
        assert dispatcher.waiting == 0  # the others are held, however many replicas
        assert dispatcher.status().held == 2
        busy, free = (replica, other) if replica.started else (other, replica)
        busy.fail_with = ReplicaLost(busy.id)
        busy.go.set()
        await until(lambda: free.started == ["c0"])
        free.go.set()
        await asyncio.gather(*tasks)
        assert free.started == ["c0", "c1", "c2"]
