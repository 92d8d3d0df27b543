"""A replica over an engine that does what the test says: leases, waiting for room, cancelling."""

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
    DeviceResidency,
    EncodedImage,
    GenerationResult,
    GenerationTask,
    Rendered,
    SubmitEncoding,
    Swap,
    Timings,
)
from serving.worker import Worker

BLOB = Blob("base", "", 1)
RECIPE = Recipe(BLOB, BLOB, BLOB, BLOB)


class Lease:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine

    def release(self) -> None:
        self.engine.held -= 1


class FakeEngine:
    """Room for ``room`` prepared recipes at once; drawing and preparing wait for events."""

    name = "fake"
    unhealthy: str | None = None

    def __init__(self, room: int) -> None:
        self.room = room
        self.held = 0
        self.preparing = False
        self.generated: list[str] = []
        self.encoding = 0
        self.may_prepare, self.may_draw = threading.Event(), threading.Event()
        self.may_encode = threading.Event()
        for event in (self.may_prepare, self.may_draw, self.may_encode):
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
        self, prepared: Any, request: GenerationTask, is_cancelled: Any, submit: SubmitEncoding
    ) -> Rendered:
        self.rendered_in = threading.current_thread()
        while not self.may_draw.wait(0.01):
            if is_cancelled():
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

    def holding(self) -> DeviceResidency:
        return DeviceResidency(frozenset(), frozenset(), 1)


def request(name: str) -> GenerationTask:
    return GenerationTask(name, RECIPE, "p", 8, 8, (1,))


@asynccontextmanager
async def replica_with(engine: FakeEngine) -> AsyncIterator[Worker]:
    replica = Worker(engine)
    try:
        yield replica
    finally:
        replica.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_one_that_does_not_fit_beside_the_other_waits_for_it() -> None:
    engine = FakeEngine(room=1)
    engine.may_draw.clear()
    async with replica_with(engine) as replica:
        tasks = [asyncio.create_task(replica.generate(request(str(i)))) for i in range(3)]
        await until(lambda: engine.held == 1)
        engine.may_draw.set()
        await asyncio.gather(*tasks)
        assert sorted(engine.generated) == ["0", "1", "2"]
        assert engine.held == 0


async def test_one_that_never_fits_is_told_so() -> None:
    engine = FakeEngine(room=0)
    async with replica_with(engine) as replica:
        with pytest.raises(TierFull):
            await replica.generate(request("0"))
        engine.room = 1
        await replica.generate(request("1"))


async def test_the_next_request_is_generated_while_images_are_encoded() -> None:
    engine = FakeEngine(room=1)
    engine.may_encode.clear()
    async with replica_with(engine) as replica:
        first = asyncio.create_task(replica.generate(request("0")))
        await until(lambda: engine.encoding == 1)
        second = asyncio.create_task(replica.generate(request("1")))
        await until(lambda: engine.generated == ["0", "1"])
        assert not first.done()
        await until(lambda: engine.held == 0)  # both have let go of their assets
        engine.may_encode.set()
        result, _ = await first
        assert result.images == (b"x",)
        assert result.timings.encode_image_ms == 1.0
        await second


async def test_warmed_up_in_the_thread_that_generates() -> None:
    engine = FakeEngine(room=1)
    async with replica_with(engine) as replica:
        await asyncio.to_thread(replica.warm_up, [(8, 8)], [1])
        await replica.generate(request("0"))
    assert engine.warmed_in is engine.rendered_in


async def test_cancelled_while_preparing_leaves_no_lease() -> None:
    engine = FakeEngine(room=1)
    engine.may_prepare.clear()
    async with replica_with(engine) as replica:
        task = asyncio.create_task(replica.generate(request("0")))
        await until(lambda: engine.preparing)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        engine.may_prepare.set()
        await replica.generate(request("1"))
        await until(lambda: engine.held == 0)
        assert engine.generated == ["1"]


async def test_cancelled_while_drawing_releases_after_the_thread_has_let_go() -> None:
    engine = FakeEngine(room=1)
    engine.may_draw.clear()
    async with replica_with(engine) as replica:
        task = asyncio.create_task(replica.generate(request("0")))
        await until(lambda: engine.held == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert engine.held == 0
        assert engine.generated == []
