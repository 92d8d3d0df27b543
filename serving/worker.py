"""A replica: one engine and the thread that generates with it; beside that thread the next request
is prepared and the last one's images are encoded."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from threading import Event
from typing import Any, Protocol

from assets.content import Blob
from assets.recipe import Recipe
from orchestrator.errors import TierFull
from serving.errors import ReplicaLost
from serving.generation.contract import (
    ClusterDirectives,
    DeviceResidency,
    GenerationResult,
    GenerationTask,
    Rendered,
    ReplicaReport,
    SubmitEncoding,
)

log = logging.getLogger(__name__)


class GenerationEngine(Protocol):
    """What a replica needs of an engine. ``prepare`` runs in any thread; ``warm_up``, ``render``
    and ``digest`` in one."""

    name: str
    #: Why it must not draw any more, once it is so.
    unhealthy: str | None

    def prepare(self, recipe: Recipe, tenant_id: str) -> Any: ...

    def warm_up(self, sizes: Sequence[tuple[int, int]], batches: Sequence[int]) -> None: ...

    def render(
        self, prepared: Any, request: GenerationTask, is_cancelled: Any, submit: SubmitEncoding
    ) -> Rendered: ...

    def digest(self) -> str: ...

    def resident(self) -> Mapping[str, frozenset[str]]: ...

    def holding(self) -> DeviceResidency: ...

    def apply_directives(self, directives: ClusterDirectives) -> None: ...

    def forget(self, keys: Collection[str]) -> None: ...

    def warm(self, blobs: Sequence[Blob]) -> str: ...


class Worker:
    """Framework-free; the same object serves in a test, on a laptop and under Ray."""

    def __init__(self, engine: GenerationEngine, node: str = "local", url: str = "") -> None:
        """``url`` is where other nodes find what this one holds."""
        self._engine = engine
        self._node = node
        self._url = url
        self._generating_thread = ThreadPoolExecutor(1, thread_name_prefix="draw")
        self._encoder = ThreadPoolExecutor(2, thread_name_prefix="encode")
        self._preparer = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        self._warmer = ThreadPoolExecutor(1, thread_name_prefix="warm")  # in nobody's way
        self._active = 0  # requests that hold leases, or are about to
        self._change = asyncio.Event()
        self._alone = asyncio.Lock()
        self._guidance: ClusterDirectives | None = None

    def warm_up(self, sizes: Sequence[tuple[int, int]], batches: Sequence[int]) -> None:
        """Warm the engine up in the thread that will generate: what CUDA's libraries plan and
        cache belongs to a thread."""
        self._generating_thread.submit(self._engine.warm_up, sizes, batches).result()

    def check_health(self) -> None:
        """Raises ReplicaLost when the engine can no longer be trusted."""
        if self._engine.unhealthy is not None:
            raise ReplicaLost(f"{self._engine.name} is unhealthy: {self._engine.unhealthy}")

    def report(self, directives: ClusterDirectives | None = None) -> ReplicaReport:
        """What it holds, after it has heard what the dispatcher knows.

        Raises ReplicaLost as ``check_health`` does.
        """
        self.check_health()
        if directives is not None and directives != self._guidance:
            self._guidance = directives
            try:
                self._engine.apply_directives(directives)
            except OSError:  # a full disk, say: it can draw all the same
                log.exception("%s cannot do as it is told", self._engine.name)
        return self._report()

    def _report(self, *, briefly: bool = False) -> ReplicaReport:
        """``briefly`` leaves out what must be looked up in folders."""
        engine = self._engine
        holding = engine.holding()
        return ReplicaReport(
            engine.name,
            self._node,
            os.getpid(),
            {} if briefly else engine.resident(),
            holding.ready,
            holding.models,
            holding.checkpoint_capacity,
            self._url,
            holding.laws,
        )

    async def generate(self, request: GenerationTask) -> tuple[GenerationResult, ReplicaReport]:
        """Prepare and generate; cancelling this coroutine stops the generation within three steps.

        The leases are released when the generating thread has let go of them; the next request is
        then generated while this one's images are being encoded.
        """
        self.check_health()
        loop = asyncio.get_running_loop()
        stop = Event()
        prepared = await self._prepare(request)
        try:
            run = copy_context().run  # what the engine logs is about this request
            work = loop.run_in_executor(
                self._generating_thread,
                run,
                self._generate,
                prepared,
                request,
                stop,
                time.perf_counter(),
            )
            try:
                rendered = await asyncio.shield(work)
            except asyncio.CancelledError:
                stop.set()
                while not work.done():  # and if it is cancelled again: leases outlive the drawing
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([work])
                if not work.cancelled():
                    work.exception()  # seen: nobody is left to hear it
                raise
        finally:
            prepared.release()
            self._left()
        images = await asyncio.gather(*map(asyncio.wrap_future, rendered.images))
        # A good image, whatever becomes of the engine.
        return rendered.completed(images), self._report(briefly=True)

    def _generate(
        self, prepared: Any, request: GenerationTask, stop: Event, asked_s: float
    ) -> Rendered:
        """Behind the request before it; how long that took belongs to the queue."""
        waited_ms = (time.perf_counter() - asked_s) * 1000
        rendered = self._engine.render(prepared, request, stop.is_set, self._encoder.submit)
        result = rendered.partial
        timings = replace(result.timings, queue_ms=waited_ms)
        return replace(rendered, partial=replace(result, timings=timings))

    async def forget(self, keys: Collection[str]) -> ReplicaReport:
        """Drop what nobody may ask for any more; what is left is in the report."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._preparer, self._engine.forget, keys)
        return self.report()

    async def warm(self, blobs: Sequence[Blob]) -> str:
        """Bring blobs up to host RAM; the lowest tier on which one of them was found."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._warmer, self._engine.warm, blobs)

    async def _prepare(self, request: GenerationTask) -> Any:
        """Lease everything; when another request's leases leave no room, wait for them.

        Raises:
            TierFull: there is no room even when nothing else is held.
        """
        with suppress(TierFull):
            return await self._prepare_once(request)
        async with self._alone:
            while True:
                while self._active:
                    self._change.clear()
                    await self._change.wait()
                try:
                    return await self._prepare_once(request)
                except TierFull:
                    if not self._active:
                        raise

    async def _prepare_once(self, request: GenerationTask) -> Any:
        """A cancelled call leaves nothing leased, whenever its thread comes back."""
        self._active += 1
        loop = asyncio.get_running_loop()
        prepare, run = self._engine.prepare, copy_context().run
        work = loop.run_in_executor(self._preparer, run, prepare, request.recipe, request.tenant_id)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(self._discard)
            raise
        except BaseException:
            self._left()
            raise

    def _discard(self, work: asyncio.Future[Any]) -> None:
        if not work.cancelled() and work.exception() is None:
            work.result().release()
        self._left()

    def _left(self) -> None:
        self._active -= 1
        self._change.set()

    async def digest(self) -> str:
        """sha256 of the working weights, once nothing draws."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._generating_thread, self._engine.digest)

    def close(self) -> None:
        self._generating_thread.shutdown(wait=True)
        self._encoder.shutdown(wait=True)
        self._preparer.shutdown(wait=True)
        self._warmer.shutdown(wait=True)
