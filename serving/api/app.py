"""The ASGI application: routes, error handlers, middleware and background tasks."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from types import FrameType
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from assets.ids import ulid
from serving.api import (
    assets,
    errors,
    estimate,
    generate_native,
    health,
    images,
    jobs,
    not_implemented,
    openapi,
    organisation,
    pools,
    previews,
    signed_objects,
    styles,
)
from serving.api.context import Context
from serving.api.dialects.octoai import routes as octoai
from serving.api.housekeeping import run_housekeeping
from serving.api.limits import LimitsMiddleware
from serving.api.metrics import MetricsMiddleware
from serving.logs import log_fields


def create_app(context: Context) -> FastAPI:
    """Return the application, with job worker and housekeeping."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        background = [
            asyncio.create_task(context.jobs.run()),
            asyncio.create_task(run_housekeeping(context)),
        ]
        _drain_on_signals(context)
        yield
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await context.finish()

    app = FastAPI(
        title="Asset Orchestrator",
        version=version("asset-orchestrator"),
        lifespan=lifespan,
        docs_url=None,  # both pages load third-party scripts
        redoc_url=None,
        strict_content_type=False,  # no content type means JSON
        redirect_slashes=False,  # the Host header would choose the target
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.context = context
    app.include_router(octoai.router)
    app.include_router(generate_native.router)
    app.include_router(jobs.search_router)
    app.include_router(jobs.keyed_router)
    app.include_router(jobs.router)
    app.include_router(previews.router)
    app.include_router(previews.costly_router)
    app.include_router(assets.costly_router)
    app.include_router(assets.search_router)
    app.include_router(assets.router)
    app.include_router(estimate.router)
    app.include_router(styles.router)
    app.include_router(images.router)
    app.include_router(signed_objects.router)
    app.include_router(organisation.search_router)
    app.include_router(organisation.router)
    app.include_router(pools.router)
    app.include_router(not_implemented.router)
    errors.install(app)
    openapi.install(app)
    app.include_router(health.router)
    app.add_middleware(LimitsMiddleware)
    app.add_middleware(errors.ErrorMiddleware)
    app.add_middleware(MetricsMiddleware)
    app.add_middleware(RequestId)
    return app


def _drain_on_signals(context: Context) -> None:
    """Tell streams of a shutdown that the server's own handlers begin."""
    for number in (signal.SIGTERM, signal.SIGINT):
        stop = signal.getsignal(number)

        def drain(number: int, frame: FrameType | None, stop: Any = stop) -> None:
            context.is_draining.set()
            if callable(stop):
                stop(number, frame)

        with suppress(ValueError):  # not the main thread: no server
            signal.signal(number, drain)


class RequestId:
    """Middleware that sets each request's id, in both headers that clients read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = "http_" + ulid()
        scope["request_id"] = request_id
        scope["answer_headers"] = {}

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                for name in (b"x-request-id", b"x-user-request-id"):
                    message["headers"].append((name, request_id.encode()))
                for name, value in scope["answer_headers"].items():
                    message["headers"].append((name.lower().encode(), value.encode()))
            await send(message)

        with log_fields(http=request_id):
            await self._app(scope, receive, send_with_id)
