"""The in-process composition root: workers without Ray, for tests and laptops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client.metrics_core import Metric

from assets.asset import Asset
from assets.content import Blob
from assets.ingest.queue import IngestQueue
from assets.storage.private_folder import private_folder
from router.admission import QueueLimits
from router.autoscaling import queued
from router.pool import Pool
from serving.api.context import Context
from serving.bootstrap.backends import open_backends
from serving.bootstrap.base_model import install_model, open_ingest_service
from serving.bootstrap.engine import open_replica
from serving.bootstrap.tiers import delete_host_tier, open_provisioner
from serving.generation.contract import (
    Attempt,
    ClusterDirectives,
    Detail,
    GenerationResult,
    Inquiry,
    ReplicaReport,
    Residency,
)
from serving.generation.following import Envelope, Follow, Followed, Followers, FollowReply
from serving.generation.status import (
    DispatcherStatus,
    PoolEstimate,
    PoolState,
    PoolStatus,
    ReplicaStart,
)
from serving.generation.submission import Cancellation, Submission
from serving.pool.dispatcher import Dispatcher
from serving.pool.following import Following
from serving.settings import Settings
from serving.worker import Worker


class LocalClient:
    """A client of a replica in this process."""

    def __init__(self, name: str, replica: Worker) -> None:
        self.id = name
        self._replica = replica

    async def describe(self, directives: ClusterDirectives) -> ReplicaReport:
        return self._replica.report(directives)

    async def generate(
        self, attempt: Attempt, forward: Callable[[bytes], None]
    ) -> tuple[GenerationResult, ReplicaReport]:
        return await self._replica.generate(attempt.task, attempt.detail, forward)

    async def progress(self, inquiry: Inquiry) -> bytes | None:
        return self._replica.progress(inquiry)

    async def forget(self, keys: Collection[str]) -> ReplicaReport:
        return await self._replica.forget(keys)

    async def warm(self, blobs: Sequence[Blob]) -> str:
        return await self._replica.warm(blobs)


class LocalEvents:
    """The :class:`~serving.generation.following.EventSource` of a dispatcher of this loop."""

    def __init__(self, following: Following) -> None:
        self._following = following

    def events(self, stream: str) -> AsyncGenerator[Envelope]:
        return self._following.events(stream)

    async def follow(self, follow: Follow) -> FollowReply:
        return await self._following.follow(follow)

    async def unfollow(self, stream: str, key: str) -> None:
        self._following.unfollow(stream, key)


class InProcessBackend:
    """A backend over the dispatcher of this loop."""

    def __init__(self, dispatcher: Dispatcher, pool: Pool) -> None:
        self._dispatcher = dispatcher
        self._pool = pool
        self._followers = Followers(LocalEvents(dispatcher.announcer.following))

    def follow(
        self, pool: str, key: str, detail: Detail, after: str, until: asyncio.Future[Any]
    ) -> AsyncGenerator[Followed | None]:
        return self._followers.follow(key, detail, after, until)

    async def progress(self, pool: str, key: str) -> Sequence[bytes]:
        return await self._dispatcher.announcer.polled(key)

    async def cancel(self, pool: str, cancellation: Cancellation) -> None:
        self._dispatcher.cancel(cancellation)

    async def estimate(self, submission: Submission) -> PoolEstimate | None:
        return self._dispatcher.estimate(submission)

    async def submit(self, submission: Submission) -> GenerationResult:
        return await self._dispatcher.submit(submission)

    async def resident(self) -> frozenset[str]:
        return self._dispatcher.roster.residency.resident()

    async def forget(self, keys: Collection[str]) -> None:
        await self._dispatcher.roster.residency.forget(keys)

    async def warm(self, blobs: Sequence[Blob]) -> Mapping[str, str]:
        return await self._dispatcher.roster.residency.warm(blobs)

    async def residency(self, keys: Collection[str]) -> Mapping[str, Residency]:
        return self._dispatcher.roster.residency.residency(keys)

    async def hold(self, keys: Collection[str]) -> None:
        self._dispatcher.roster.residency.hold(keys)

    async def dispatchers(self) -> Mapping[str, DispatcherStatus]:
        return {self._pool.name: self._dispatcher.status()}

    async def pools(self) -> Sequence[PoolStatus]:
        """Workers live as long as this process: it does not scale."""
        return [self._status()]

    async def starting(self, pool: str) -> None:
        return None

    async def families(self) -> Sequence[Metric]:
        return self._dispatcher.metrics.families(self._dispatcher.status(), self._status())

    def _status(self) -> PoolStatus:
        members = self._dispatcher.roster.members()
        replicas = [ReplicaStart(id=m.id, is_up=m.is_up, running=m.running) for m in members]
        waiting = queued(self._dispatcher.waiting, members)
        return PoolStatus(self._pool, PoolState(waiting=waiting, replicas=replicas))


class LocalIngest:
    """An ingest runner in this process."""

    def __init__(self, queue: IngestQueue) -> None:
        self._queue = queue

    async def start(self, asset: Asset) -> None:
        self._queue.submit(asset)


@asynccontextmanager
async def local_context(settings: Settings) -> AsyncIterator[Context]:
    """The whole platform on the running event loop."""
    private_folder(settings.data_dir)
    backends = await asyncio.to_thread(open_backends, settings)
    ingest_service = open_ingest_service(settings, backends)
    manifest = await asyncio.to_thread(install_model, settings, ingest_service)
    pool = settings.resolved_pools[0]
    names = [f"{pool.name}-{index}" for index in range(max(1, pool.min))]
    provisioner = await asyncio.to_thread(open_provisioner, settings)
    replicas = [await asyncio.to_thread(open_replica, settings, n, provisioner) for n in names]
    clients = [LocalClient(n, r) for n, r in zip(names, replicas, strict=True)]
    limits = QueueLimits(settings.queue_per_tenant, settings.queue_total)
    dispatcher = Dispatcher(clients, limits, pool=pool.name)
    dispatcher.start()
    ingest = IngestQueue(ingest_service, backends.library)

    try:
        backend = InProcessBackend(dispatcher, pool)
        local = LocalIngest(ingest)
        yield Context.of(settings, backends, backend, local, manifest.native_size)
    finally:
        await dispatcher.close()
        ingest.close()
        ingest_service.close()
        for replica in replicas:
            replica.close()
        delete_host_tier(settings)
