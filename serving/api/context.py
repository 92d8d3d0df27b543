"""The context of all routes: the platform, its backends and the public URL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from threading import Event
from typing import Annotated, Any, cast

from fastapi import Depends, Request

from assets.ingest.runner import IngestRunner
from assets.remote.guarded_http import Fetcher
from assets.storage.signing import Signer
from serving.api.recent import RecentCache
from serving.api.stream_limit import StreamLimit
from serving.api.turns import TenantLocks
from serving.bootstrap.backends import Backends, open_fetcher
from serving.bootstrap.policy import open_credentials, open_gate
from serving.bootstrap.secret import platform_secret
from serving.generation.backend import (
    EventFeed,
    GenerationBackend,
    Generator,
    PoolMonitor,
    Tiers,
)
from serving.generation.placement import Placement
from serving.generation.pool_choice import PoolChoice
from serving.generation.service import GenerationService
from serving.generation.sizes import ImageSizes
from serving.jobs.jobs import Jobs
from serving.jobs.results import JobResults
from serving.settings import Settings

#: Every response has a new download URL.
_DOWNLOAD_EXPIRES_S = 3600


@dataclass(frozen=True, slots=True)
class Context:
    """The dependencies of the routes, one per process.

    ``POST /generate`` without a key uses ``open_tenant``; empty: a key is required.
    """

    platform: GenerationService
    generator: Generator
    events: EventFeed
    tiers: Tiers
    monitor: PoolMonitor
    backends: Backends
    reconcile_s: float
    ingest: IngestRunner
    fetcher: Fetcher
    signer: Signer
    public_url: str
    url_expires_s: int
    open_tenant: str
    open_requests_per_min: int
    placement: Placement = field(init=False)
    jobs: Jobs = field(init=False)
    #: This process shuts down: it ends streams that clients can continue elsewhere.
    is_draining: Event = field(default_factory=Event)
    streams: StreamLimit = field(default_factory=StreamLimit)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    #: Serialises a tenant's requests that read many rows.
    searches: TenantLocks = field(default_factory=TenantLocks)
    #: Of public routes.
    recent: RecentCache = field(default_factory=RecentCache)
    #: Running /readyz checks: (start on the loop's clock, check).
    probes: dict[str, list[tuple[float, asyncio.Future[Any]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        backends = self.backends
        jobs = Jobs(
            backends.jobs,
            JobResults(backends.store, backends.blobs, self.signer),
            self.platform,
            self.generator,
            backends.directory.keyring,
            self.signer,
            backends.database,
        )
        object.__setattr__(self, "jobs", jobs)
        object.__setattr__(self, "placement", Placement(backends.library, self.tiers))

    @classmethod
    def of(
        cls,
        settings: Settings,
        backends: Backends,
        backend: GenerationBackend,
        ingest: IngestRunner,
        native_size: int,
    ) -> Context:
        """``native_size``: the served model's, in pixels."""
        pools = PoolChoice(settings.resolved_pools)
        return cls(
            platform=GenerationService(
                backends.library,
                backend,
                backends.meter,
                ImageSizes(native_size, settings.max_pixels),
                settings.request_timeout_s,
                pools,
                open_gate(settings, backends.audit),
                open_credentials(settings),
            ),
            generator=backend,
            events=backend,
            tiers=backend,
            monitor=backend,
            backends=backends,
            reconcile_s=settings.reconcile_s,
            ingest=ingest,
            fetcher=open_fetcher(settings),
            signer=Signer(platform_secret(settings)),
            public_url=settings.resolved_public_url,
            url_expires_s=settings.url_expires_s,
            open_tenant=settings.open_tenant,
            open_requests_per_min=settings.open_requests_per_min,
        )

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run ``work`` to completion, even if the caller is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait for what was spawned."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def url(self, path: str) -> str:
        return f"{self.public_url}/{path}"

    def signed_url(self, verb: str, key: str) -> str:
        """Return a URL for one verb and object, signed by store or platform."""
        store_signed = (
            self.backends.store.signed_put if verb == "PUT" else self.backends.store.signed_get
        )
        expires_s = self.url_expires_s
        if verb == "GET":  # external stores do not know of deletions
            expires_s = min(expires_s, _DOWNLOAD_EXPIRES_S)
        if url := store_signed(key, expires_s):
            return url
        token = self.signer.sign(verb, key, int(time.time()) + expires_s)
        return self.url(f"objects/{key}?token={token}")


def context_of(request: Request) -> Context:
    return cast(Context, request.app.state.context)


def answer_headers(request: Request) -> dict[str, str]:
    """Return the mutable extra headers, also of errors."""
    headers: dict[str, str] = request.scope.setdefault("answer_headers", {})
    return headers


async def _context(request: Request) -> Context:
    """Not a plain function: FastAPI calls those in a thread."""
    return context_of(request)


Ctx = Annotated[Context, Depends(_context)]
