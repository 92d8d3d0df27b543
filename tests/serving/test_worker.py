"""The worker over a fake engine: leases, waiting, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from assets.content import Blob
from assets.recipe import Recipe
from orchestrator.errors import TierFull
from serving.generation.contract import (
    GenerationTask,
)
from serving.generation.fakes import FakeEngine
from serving.worker import Worker
from tests.support.generation import task_of

BLOB = Blob("base", "", 1)
RECIPE = Recipe(BLOB, BLOB, BLOB, BLOB)


def request(name: str) -> GenerationTask:
    return task_of(name, RECIPE, "p", 8, 8, (1,))


@asynccontextmanager
async def running_worker(engine: FakeEngine) -> AsyncIterator[Worker]:
    worker = Worker(engine)
    try:
        yield worker
    finally:
        worker.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_request_without_room_waits_for_the_others() -> None:
    engine = FakeEngine(room=1)
    engine.may_generate.clear()
    async with running_worker(engine) as worker:
        tasks = [asyncio.create_task(worker.generate(request(str(i)))) for i in range(3)]
        await until(lambda: engine.held == 1)
        engine.may_generate.set()
        await asyncio.gather(*tasks)
        assert sorted(engine.generated) == ["0", "1", "2"]
        assert engine.held == 0


async def test_a_request_that_never_fits_fails() -> None:
    engine = FakeEngine(room=0)
    async with running_worker(engine) as worker:
        with pytest.raises(TierFull):
            await worker.generate(request("0"))
        engine.room = 1
        await worker.generate(request("1"))


async def test_the_next_request_is_generated_while_images_are_encoded() -> None:
    engine = FakeEngine(room=1)
    engine.may_encode.clear()
    async with running_worker(engine) as worker:
        first = asyncio.create_task(worker.generate(request("0")))
        await until(lambda: engine.encoding == 1)
        second = asyncio.create_task(worker.generate(request("1")))
        await until(lambda: engine.generated == ["0", "1"])
        assert not first.done()
        await until(lambda: engine.held == 0)
        engine.may_encode.set()
        result, _ = await first
        assert result.images == (b"x",)
        assert result.timings.encode_image_ms == 1.0
        await second


async def test_warm_up_runs_in_the_generating_thread() -> None:
    engine = FakeEngine(room=1)
    async with running_worker(engine) as worker:
        await asyncio.to_thread(worker.warm_up, [(8, 8)], [1])
        await worker.generate(request("0"))
    assert engine.warmed_in is engine.rendered_in


async def test_cancelling_while_preparing_leaves_no_lease() -> None:
    engine = FakeEngine(room=1)
    engine.may_prepare.clear()
    async with running_worker(engine) as worker:
        task = asyncio.create_task(worker.generate(request("0")))
        await until(lambda: engine.preparing)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        engine.may_prepare.set()
        await worker.generate(request("1"))
        await until(lambda: engine.held == 0)
        assert engine.generated == ["1"]


async def test_cancelling_while_generating_releases_the_leases() -> None:
    engine = FakeEngine(room=1)
    engine.may_generate.clear()
    async with running_worker(engine) as worker:
        task = asyncio.create_task(worker.generate(request("0")))
        await until(lambda: engine.held == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert engine.held == 0
        assert engine.generated == []
