"""The worker over a fake engine: leases, waiting, cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from assets.content import Blob
from assets.recipe import Recipe
from orchestrator.errors import TierFull
from serving.errors import Cancelled
from serving.generation.contract import (
    ClusterDirectives,
    GenerationResult,
    GenerationTask,
    Swap,
    Timings,
)
from serving.generation.engine import (
    DeviceResidency,
    EncodedImage,
    GenerationObserver,
    Rendered,
    SubmitEncoding,
)
from serving.worker import Worker
from tests.support.generation import task_of

BLOB = Blob("base", "", 1)
RECIPE = Recipe(BLOB, BLOB, BLOB, BLOB)


class Lease:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine

    def release(self) -> None:
        self.engine.held -= 1


class FakeEngine:
    """An engine with room for ``room`` prepared recipes; every phase waits for an event."""

    name = "fake"
    unhealthy: str | None = None

    def __init__(self, room: int) -> None:
        self.room = room
        self.held = 0
        self.preparing = False
        self.generated: list[str] = []
        self.encoding = 0
        self.may_prepare, self.may_generate = threading.Event(), threading.Event()
        self.may_encode = threading.Event()
        for event in (self.may_prepare, self.may_generate, self.may_encode):
            event.set()

    def forget(self, keys: Collection[str]) -> None:
        raise AssertionError("not in these tests")

    def warm(self, blobs: Sequence[Blob]) -> str:
        raise AssertionError("not in these tests")

    def apply_directives(self, directives: ClusterDirectives) -> None:
        raise AssertionError("not in these tests")

    def prepare(self, recipe: Recipe, tenant_id: str = "") -> Any:
        self.preparing = True
        assert self.may_prepare.wait(30)
        if self.held >= self.room:
            raise TierFull("gpu", 1, 1)
        self.held += 1
        return Lease(self)

    def warm_up(self, sizes: Sequence[tuple[int, int]], batches: Sequence[int]) -> None:
        self.warmed_in = threading.current_thread()

    def render(
        self,
        prepared: Any,
        request: GenerationTask,
        observer: GenerationObserver,
        submit: SubmitEncoding,
    ) -> Rendered:
        self.rendered_in = threading.current_thread()
        while not self.may_generate.wait(0.01):
            if observer.is_cancelled():
                raise Cancelled
        self.generated.append(request.id)
        result = GenerationResult((), self.name, (), Swap(0, 0, 0, 0), Timings())
        return Rendered(result, (submit(self._encode),))

    def _encode(self) -> EncodedImage:
        self.encoding += 1
        assert self.may_encode.wait(30)
        return EncodedImage(b"x", 1.0)

    def digest(self) -> str:
        return "d"

    def resident(self) -> dict[str, frozenset[str]]:
        return {}

    def residency(self) -> DeviceResidency:
        return DeviceResidency(frozenset(), frozenset(), 1)


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
