"""Stand-ins for a backend and for an engine: requests without pixels."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import Any

from prometheus_client.metrics_core import Metric

from assets.content import Blob
from assets.recipe import Recipe
from orchestrator.errors import TierFull
from router.pool import Pool
from serving.errors import Cancelled
from serving.generation.contract import (
    ClusterDirectives,
    Detail,
    GenerationResult,
    GenerationTask,
    Residency,
    Swap,
    Timings,
)
from serving.generation.engine import (
    DeviceResidency,
    EncodedImage,
    GenerationObserver,
    Leased,
    Rendered,
    SubmitEncoding,
)
from serving.generation.events import Event, Starting, encode
from serving.generation.following import Followed
from serving.generation.status import (
    DispatcherStatus,
    PoolEstimate,
    PoolState,
    PoolStatus,
    ReplicaStart,
)
from serving.generation.submission import Cancellation, Submission

IMAGE = b"not an image"
_POOL = PoolStatus(
    Pool("default", min=1),
    PoolState(waiting=0, replicas=[ReplicaStart(id="default-0", is_up=True)]),
)


class FakeBackend:
    """A :class:`~serving.generation.backend.GenerationBackend` that records ``submissions``.

    ``go`` lets them finish; followers see ``events``.
    """

    def __init__(self) -> None:
        self.submissions: list[Submission] = []
        self.go = asyncio.Event()
        self.go.set()
        self.events: list[Event] = []
        self.followed: list[tuple[str, Detail, str]] = []
        self.cancelled: list[Cancellation] = []

    async def follow(
        self, pool: str, key: str, detail: Detail, after: str, until: asyncio.Future[Any]
    ) -> AsyncGenerator[Followed | None]:
        self.followed.append((key, detail, after))
        for number, event in enumerate(self.events):
            yield Followed(f"e-{number}", encode(event))
        await asyncio.wait([until])

    async def progress(self, pool: str, key: str) -> Sequence[bytes]:
        return [encode(event) for event in self.events]

    async def cancel(self, pool: str, cancellation: Cancellation) -> None:
        self.cancelled.append(cancellation)

    async def estimate(self, submission: Submission) -> PoolEstimate | None:
        return None

    async def submit(self, submission: Submission) -> GenerationResult:
        self.submissions.append(submission)
        await self.go.wait()
        images = (IMAGE,) * len(submission.request.seeds)
        timings = Timings(denoise_ms=float(submission.request.params.steps))
        return GenerationResult(images, "instant", (), Swap(0, 0, 0, 0), timings)

    async def resident(self) -> frozenset[str]:
        return frozenset()

    async def forget(self, keys: Collection[str]) -> None: ...

    async def warm(self, blobs: Sequence[Blob]) -> Mapping[str, str]:
        return {"instant": "disk"}

    async def residency(self, keys: Collection[str]) -> Mapping[str, Residency]:
        return {}

    async def hold(self, keys: Collection[str]) -> None: ...

    async def dispatchers(self) -> Mapping[str, DispatcherStatus]:
        return {}

    async def pools(self) -> Sequence[PoolStatus]:
        return [_POOL]

    async def starting(self, pool: str) -> Starting | None:
        return None

    async def families(self) -> Sequence[Metric]:
        return []


class FakeLease:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine

    def release(self) -> None:
        self.engine.held -= 1


class FakeEngine:
    """A :class:`~serving.generation.engine.GenerationEngine` with room for ``room`` prepared
    recipes; every phase waits for an event."""

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

    def prepare(self, recipe: Recipe, tenant_id: str = "") -> FakeLease:
        self.preparing = True
        assert self.may_prepare.wait(30)
        if self.held >= self.room:
            raise TierFull("gpu", 1, 1)
        self.held += 1
        return FakeLease(self)

    def warm_up(self, sizes: Sequence[tuple[int, int]], batches: Sequence[int]) -> None:
        self.warmed_in = threading.current_thread()

    def render(
        self,
        prepared: Leased,
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
