"""What every route needs: the platform, who asks, and where URLs point."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from fastapi import Depends, Request

from assets.ingest_runner import IngestRunner
from assets.principal import Principal
from assets.signing import Signer
from assets.store import ObjectStore
from serving.jobs.jobs import Job, Jobs
from serving.platform import Platform
from serving.tenants.directory import Directory


@dataclass(frozen=True, slots=True)
class Context:
    """Made once a process by a composition root. ``open_tenant`` may use the simple door
    without a key; empty means nobody. ``status`` describes the pool for people."""

    platform: Platform
    store: ObjectStore
    directory: Directory
    jobs: Jobs
    ingest: IngestRunner
    signer: Signer
    public_url: str
    url_expires_s: int
    open_tenant: str
    status: Callable[[], Any]
    #: Set when a job was accepted: whoever works on jobs need not wait for its next look.
    new_job: asyncio.Event = field(default_factory=asyncio.Event)
    #: Those who wait for the same job share one watch.
    watches: dict[str, asyncio.Future[Job]] = field(default_factory=dict)

    def url(self, path: str) -> str:
        return f"{self.public_url}/{path}"

    def signed_url(self, verb: str, key: str) -> str:
        """A URL that may do one thing with one object: the store's own, or one of ours."""
        own = self.store.signed_put if verb == "PUT" else self.store.signed_get
        if url := own(key, self.url_expires_s):
            return url
        token = self.signer.sign(verb, key, int(time.time()) + self.url_expires_s)
        return self.url(f"objects/{key}?token={token}")


def context_of(request: Request) -> Context:
    return cast(Context, request.app.state.context)


def bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


async def principal_of(request: Request) -> Principal:
    directory = context_of(request).directory
    return await asyncio.to_thread(directory.authenticate, bearer(request))


Ctx = Annotated[Context, Depends(context_of)]
Who = Annotated[Principal, Depends(principal_of)]
