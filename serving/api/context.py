"""What every route needs: the platform, and where URLs point."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from fastapi import Depends, Request

from assets.ingest.runner import IngestRunner
from assets.remote.guarded_http import Fetcher
from assets.storage.signing import Signer
from serving.api.recent import Recent
from serving.api.turns import Turns
from serving.bootstrap.backends import Backends
from serving.generation.service import Platform
from serving.jobs.watch import JobWatch

#: URLs to download are asked for anew with each answer, and need not last.
_DOWNLOAD_EXPIRES_S = 3600


@dataclass(frozen=True, slots=True)
class Context:
    """Made once a process by a composition root. ``open_tenant`` pays for ``POST
    /generate`` without a key; empty means nobody. ``status`` describes the pool for people."""

    platform: Platform
    backends: Backends
    reconcile_s: float
    ingest: IngestRunner
    fetcher: Fetcher
    signer: Signer
    public_url: str
    url_expires_s: int
    open_tenant: str
    open_requests_per_min: int
    status: Callable[[], Any]
    #: Set when a job was accepted: whoever works on jobs need not wait for its next look.
    new_job: asyncio.Event = field(default_factory=asyncio.Event)
    job_watch: JobWatch = field(init=False)
    #: Questions that look at many rows.
    searches: Turns = field(default_factory=Turns)
    #: What anybody may ask for without a key.
    recent: Recent = field(default_factory=Recent)
    #: What is being asked for /readyz, by part: since when (seconds of the loop's clock), and what.
    probes: dict[str, list[tuple[float, asyncio.Future[Any]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "job_watch", JobWatch(self.backends.jobs))  # for it is frozen

    def url(self, path: str) -> str:
        return f"{self.public_url}/{path}"

    def signed_url(self, verb: str, key: str) -> str:
        """A URL that may do one thing with one object: the store's own, or one of ours."""
        own = self.backends.store.signed_put if verb == "PUT" else self.backends.store.signed_get
        expires_s = self.url_expires_s
        if verb == "GET":  # a store of its own mind does not know of deletions
            expires_s = min(expires_s, _DOWNLOAD_EXPIRES_S)
        if url := own(key, expires_s):
            return url
        token = self.signer.sign(verb, key, int(time.time()) + expires_s)
        return self.url(f"objects/{key}?token={token}")


def context_of(request: Request) -> Context:
    return cast(Context, request.app.state.context)


def answer_headers(request: Request) -> dict[str, str]:
    """Headers that the answer will have, an error's too."""
    headers: dict[str, str] = request.scope.setdefault("answer_headers", {})
    return headers


Ctx = Annotated[Context, Depends(context_of)]
