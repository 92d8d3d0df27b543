"""Liveness, readiness, status and metrics, for probes, load balancers and Prometheus."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from assets.base_model.manifest import load_manifest
from assets.library.resolve import BASE_NAME
from serving.api import metrics
from serving.api.context import Context, Ctx
from serving.api.keyed_route import OpenRoute
from serving.api.models.pools import Alive, Ready, Status
from serving.api.route_options import answers_text, answers_with

router = APIRouter(tags=["health"], route_class=OpenRoute)
log = logging.getLogger(__name__)

_CHECK_TIMEOUT_S = 5.0
#: Then a second check starts beside a hanging one.
_HUNG_AFTER_S = 60.0
_METRICS_EXAMPLE = """# TYPE ao_waiting_requests gauge
ao_waiting_requests{pool="default"} 2.0
"""


@router.get("/healthz")
@router.get("/healthcheck", include_in_schema=False)
@router.get("/health", include_in_schema=False)
async def get_health() -> Alive:
    """Return 200 while this gateway runs; /readyz checks its backends."""
    return Alive(status="ok")


@router.get("/readyz", **answers_with(Ready, 200, 503))
async def get_readiness(context: Ctx) -> JSONResponse:
    """Return 200 if the platform can generate, else 503, by component.

    It needs the database, the model in the store, and a replica up or a pool that scales from zero.
    """
    body = await context.recent.get("ready", lambda: _parts(context))
    return JSONResponse(body.model_dump(), 200 if body.status == "ready" else 503)


async def _parts(context: Context) -> Ready:
    backends = context.backends
    checks: dict[str, Callable[[], Coroutine[None, None, object]]] = {
        "database": lambda: asyncio.to_thread(backends.directory.ping),
        "store": lambda: asyncio.to_thread(load_manifest, backends.store, BASE_NAME),
        "pools": lambda: _can_generate(context),
    }
    states = await asyncio.gather(*(_state(context, part, check) for part, check in checks.items()))
    state_of = dict(zip(checks, states, strict=True))
    is_ready = set(state_of.values()) == {"ok"}
    return Ready(status="ready" if is_ready else "not ready", **state_of)


async def _state(
    context: Context, part: str, check: Callable[[], Coroutine[None, None, object]]
) -> str:
    """Return ``ok`` or the error's type.

    Probes share a check, so a hanging store occupies few threads; at most two run.
    """
    now = asyncio.get_running_loop().time()
    running = [probe for probe in context.probes.get(part, ()) if not probe[1].done()]
    if not running or (len(running) == 1 and now - running[0][0] > _HUNG_AFTER_S):
        running.append((now, asyncio.ensure_future(check())))
    context.probes[part] = running
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            await asyncio.shield(running[-1][1])
    except Exception as error:
        kind = type(error).__name__
        log.warning("not ready: %s: %s", part, kind)
        log.debug("not ready", exc_info=True)
        return kind  # the route is public
    return "ok"


class NotReady(Exception):
    """No replica is up and no pool can start one."""


async def _can_generate(context: Context) -> None:
    for pool in await context.monitor.pools():
        if pool.state is None or not pool.pool.max:
            continue  # unresponsive or switched off
        if pool.pool.min == 0 or any(replica.is_up for replica in pool.state.replicas):
            return
    raise NotReady


@router.get("/v1/status")
async def get_status(context: Ctx) -> Status:
    """Return the queue length and each replica's state."""
    return Status.of(await context.recent.get("status", context.monitor.dispatchers))


@router.get("/metrics", **answers_text("text/plain", _METRICS_EXAMPLE))
async def get_metrics(context: Ctx) -> Response:
    """Return the metrics of all pools and this node's gateways (docs/metrics.md)."""

    async def exposition() -> bytes:
        families = await context.monitor.families()
        return await asyncio.to_thread(metrics.exposition, families)

    text = await context.recent.get("metrics", exposition)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
