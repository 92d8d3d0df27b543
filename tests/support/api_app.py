"""The application in this process, with real storage and instant generation.

A request takes milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI

from assets.asset import COMMONS, Asset
from assets.content import MODEL_COMPONENTS, Blob
from assets.ids import new_asset_id
from assets.ingest.runner import NoIngest
from assets.library.resolve import BASE_NAME
from serving.api.app import create_app
from serving.api.context import Context
from serving.bootstrap.backends import Backends, open_backends
from serving.generation.fakes import FakeBackend
from serving.settings import Settings


@dataclass(frozen=True)
class Api:
    app: FastAPI
    context: Context
    backends: Backends
    backend: FakeBackend
    http: httpx2.AsyncClient

    def key(self, tenant: str, role: str = "owner") -> dict[str, str]:
        """Return a new key's header; create the tenant if needed."""
        directory = self.backends.directory
        if tenant not in {known.name for known in directory.tenants()}:
            directory.add_tenant(tenant)
        key = directory.keyring.add_key(tenant, role=role)  # type: ignore[arg-type]
        return {"Authorization": f"Bearer {key.text}"}


@asynccontextmanager
async def serving_api(folder: Path, database_url: str = "", **settings: Any) -> AsyncIterator[Api]:
    """Run the application on this event loop, without background tasks."""
    configured = Settings(data_dir=folder, database_url=database_url, **settings)
    backends = open_backends(configured)
    ensure_base(backends)
    backend = FakeBackend()

    served = configured.model_copy(update={"public_url": "http://api"})
    context = Context.of(served, backends, backend, NoIngest(), 1024)
    app = create_app(context)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://api") as http:
            yield Api(app, context, backends, backend, http)
    finally:
        backends.close()


def ensure_base(backends: Backends) -> None:
    """Add the default checkpoint unless it exists."""
    if backends.records.find_foreign(COMMONS, BASE_NAME) is None:
        backends.records.add(ready_asset(COMMONS, BASE_NAME, "checkpoint", visibility="public"))


def ready_asset(tenant: str, name: str, kind: str, tenant_id: str = "", **fields: Any) -> Asset:
    """Return a ready asset without bytes."""
    asset_id = new_asset_id()
    components = MODEL_COMPONENTS if kind == "checkpoint" else (kind,)
    prefix = "p" if fields.get("visibility") == "public" else "t"
    parts = {
        component: Blob(f"{prefix}{asset_id[6:]}{component}", "0" * 64, 1)
        for component in components
    }
    return Asset(
        id=asset_id, tenant_id=tenant_id or tenant, owner=tenant, name=name, kind=kind,  # type: ignore[arg-type]
        created_at_s=0.0, status="ready", parts=parts, report={"fits": "x"}, **fields,  # type: ignore[arg-type]
    )  # fmt: skip


@asynccontextmanager
async def working(api: Api) -> AsyncIterator[None]:
    """Run the application's jobs."""
    runner = asyncio.create_task(api.context.jobs.run())
    try:
        yield
    finally:
        runner.cancel()
        await asyncio.wait([runner])
