"""The worker of a replica: one engine and its generating thread.

Other threads prepare the next request and encode the previous one's images.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace

from cachetools import TTLCache
from msgspec import structs

from assets.content import Blob
from orchestrator.errors import TierFull
from serving.errors import ReplicaLost
from serving.generation.contract import (
    ClusterDirectives,
    Detail,
    GenerationResult,
    GenerationTask,
    Inquiry,
    ReplicaReport,
)
from serving.generation.engine import EncodedImage, GenerationEngine, Leased, Rendered
from serving.generation.events import encode
from serving.generation.progress import Progress

log = logging.getLogger(__name__)


_WANTED, _WANTED_S = 1_000, 60.0


def _ignore(_: bytes) -> None:
    """Nobody follows."""


class Worker:
    """Runs the requests of one replica, without Ray or a web framework."""

    def __init__(self, engine: GenerationEngine, node: str = "local", url: str = "") -> None:
        """``url``: where other nodes fetch this node's blobs."""
        self._engine = engine
        self._node = node
        self._url = url
        self._generating_thread = ThreadPoolExecutor(1, thread_name_prefix="draw")
        self._encoder = ThreadPoolExecutor(2, thread_name_prefix="encode")
        self._preparer = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        self._warmer = ThreadPoolExecutor(1, thread_name_prefix="warm")  # delays no request
        self._active = 0  # requests that hold leases or are being prepared
        self._released = asyncio.Event()
        self._retry_lock = asyncio.Lock()
        self._running: dict[str, Progress] = {}
        #: Details of requests that are still on their way here.
        self._wanted: TTLCache[str, Detail] = TTLCache(_WANTED, _WANTED_S)
        self._directives: ClusterDirectives | None = None

    def warm_up(self, sizes: Sequence[tuple[int, int]], batches: Sequence[int]) -> None:
        """In the generating thread: CUDA libraries cache plans per thread."""
        self._generating_thread.submit(self._engine.warm_up, sizes, batches).result()

    def check_health(self) -> None:
        """Raises ReplicaLost if the engine is unhealthy."""
        if self._engine.unhealthy is not None:
            raise ReplicaLost(f"{self._engine.name} is unhealthy: {self._engine.unhealthy}")

    def report(self, directives: ClusterDirectives | None = None) -> ReplicaReport:
        """Apply changed ``directives``; report what this replica holds.

        Raises:
            ReplicaLost: the engine is unhealthy.
        """
        self.check_health()
        if directives is not None and directives != self._directives:
            self._directives = directives
            try:
                self._engine.apply_directives(directives)
            except OSError:  # such as a full disk; it can still generate
                log.exception("%s cannot apply the dispatcher's directives", self._engine.name)
        return self._report()

    def _report(self, *, briefly: bool = False) -> ReplicaReport:
        """``briefly`` omits the keys by tier, which need a scan of folders."""
        engine = self._engine
        residency = engine.residency()
        return ReplicaReport(
            engine.name,
            self._node,
            os.getpid(),
            {} if briefly else engine.resident(),
            residency.ready,
            residency.models,
            residency.checkpoint_capacity,
            self._url,
            residency.eviction_policies,
        )

    async def generate(
        self,
        request: GenerationTask,
        detail: Detail = "nothing",
        emit: Callable[[bytes], None] = _ignore,
    ) -> tuple[GenerationResult, ReplicaReport]:
        """Generate images. Cancelling stops within three steps.

        The leases end with the work of the generating thread; images are encoded later. Encoded
        events of the wanted ``detail`` go to ``emit``, on this loop.

        Raises:
            ReplicaLost: the engine is unhealthy.
            TierFull: no room even when nothing else is leased.
        """
        self.check_health()
        loop = asyncio.get_running_loop()
        progress = Progress(
            request.params.steps,
            len(request.seeds),
            lambda event: loop.call_soon_threadsafe(emit, encode(event)),
            self._encoder.submit,
            self._wanted.pop(request.id, detail),
        )
        self._running[request.id] = progress
        try:
            return await self._run(request, progress)
        finally:
            if self._running.get(request.id) is progress:  # not of a repeated request
                del self._running[request.id]

    def progress(self, inquiry: Inquiry) -> bytes | None:
        """Return the encoded last step of a running request; change what it reports."""
        progress = self._running.get(inquiry.id)
        if progress is None:
            self._wanted[inquiry.id] = inquiry.detail
            return None
        progress.detail = inquiry.detail
        return None if progress.last is None else encode(progress.last)

    async def _run(
        self, request: GenerationTask, progress: Progress
    ) -> tuple[GenerationResult, ReplicaReport]:
        loop = asyncio.get_running_loop()
        if progress.detail != "nothing":
            ready = self._engine.residency().ready
            if missing := sum(blob.key not in ready for blob in request.recipe.blobs()):
                progress.fetching(missing)
        prepared = await self._prepare(request)
        try:
            run = copy_context().run  # the request's log context
            work = loop.run_in_executor(
                self._generating_thread,
                run,
                self._generate,
                prepared,
                request,
                progress,
                time.perf_counter(),
            )
            try:
                rendered = await asyncio.shield(work)
            except asyncio.CancelledError:
                progress.cancel()
                # Even if cancelled again: leases must outlive the generation.
                while not work.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([work])
                if not work.cancelled():
                    work.exception()  # or asyncio logs it
                raise
        finally:
            prepared.release()
            self._finish_request()
        images = await asyncio.gather(*map(asyncio.wrap_future, rendered.images))
        # No health check: the images are good.
        return rendered.completed(images), self._report(briefly=True)

    def _generate(
        self, prepared: Leased, request: GenerationTask, progress: Progress, asked_s: float
    ) -> Rendered:
        waited_ms = (time.perf_counter() - asked_s) * 1000

        def submit(work: Callable[[], EncodedImage]) -> Future[EncodedImage]:
            image = self._encoder.submit(work)
            progress.encoding(image)
            return image

        rendered = self._engine.render(prepared, request, progress, submit)
        result = rendered.partial
        timings = structs.replace(result.timings, queue_ms=waited_ms)
        return replace(rendered, partial=structs.replace(result, timings=timings))

    async def forget(self, keys: Collection[str]) -> ReplicaReport:
        """Drop keys from every tier; report the rest."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._preparer, self._engine.forget, keys)
        return self.report()

    async def warm(self, blobs: Sequence[Blob]) -> str:
        """Fetch into host RAM; return the lowest tier found on."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._warmer, self._engine.warm, blobs)

    async def _prepare(self, request: GenerationTask) -> Leased:
        """Lease the request's assets; without room, wait for others' leases."""
        with suppress(TierFull):
            return await self._prepare_once(request)
        async with self._retry_lock:
            while True:
                while self._active:
                    self._released.clear()
                    await self._released.wait()
                try:
                    return await self._prepare_once(request)
                except TierFull:
                    if not self._active:
                        raise

    async def _prepare_once(self, request: GenerationTask) -> Leased:
        """After a cancellation, leases are released when the thread returns."""
        self._active += 1
        loop = asyncio.get_running_loop()
        prepare, run = self._engine.prepare, copy_context().run
        work = loop.run_in_executor(self._preparer, run, prepare, request.recipe, request.tenant_id)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(self._release_result)
            raise
        except BaseException:
            self._finish_request()
            raise

    def _release_result(self, work: asyncio.Future[Leased]) -> None:
        if not work.cancelled() and work.exception() is None:
            work.result().release()
        self._finish_request()

    def _finish_request(self) -> None:
        self._active -= 1
        self._released.set()

    async def digest(self) -> str:
        """Return the digest of the weights, after the running generation."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._generating_thread, self._engine.digest)

    def close(self) -> None:
        self._generating_thread.shutdown(wait=True)
        self._encoder.shutdown(wait=True)
        self._preparer.shutdown(wait=True)
        self._warmer.shutdown(wait=True)
