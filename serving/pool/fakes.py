"""Stand-ins for replicas and for what launches them: the pool's logic without processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence

from assets.content import Blob
from serving.generation.contract import (
    Attempt,
    ClusterDirectives,
    Detail,
    GenerationResult,
    Inquiry,
    ReplicaReport,
    Swap,
    Timings,
)


class FakeReplica:
    """A :class:`~serving.pool.replica_state.ReplicaClient`: its user controls start, results and
    failures. ``checkpoints``: which keys are models."""

    def __init__(self, name: str, checkpoints: Collection[str] = ("base",)) -> None:
        self.id = name
        self.checkpoints = frozenset(checkpoints)
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
        self.details: dict[str, Detail] = {}
        self.forward: dict[str, Callable[[bytes], None]] = {}
        self.last_step: bytes | None = None

    async def describe(self, directives: ClusterDirectives) -> ReplicaReport:
        self.directives = directives
        await self.up.wait()
        return self.report()

    def report(self) -> ReplicaReport:
        keys = frozenset(self.keys)
        return ReplicaReport(self.id, "node", 1, {"gpu": keys}, keys, keys & self.checkpoints, 2)

    async def forget(self, keys: Collection[str]) -> ReplicaReport:
        self.keys -= set(keys)
        return self.report()

    async def warm(self, blobs: Sequence[Blob]) -> str:
        self.warmed += blobs
        return "store"

    async def progress(self, inquiry: Inquiry) -> bytes | None:
        self.details[inquiry.id] = inquiry.detail
        return self.last_step

    async def generate(
        self, attempt: Attempt, forward: Callable[[bytes], None]
    ) -> tuple[GenerationResult, ReplicaReport]:
        request = attempt.task
        self.details[request.id] = attempt.detail
        self.forward[request.id] = forward
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


class FakeLauncher:
    """A :class:`~serving.pool.replica_launcher.ReplicaLauncher` of fake replicas, down at first."""

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
