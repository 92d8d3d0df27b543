"""Is it there, can it draw, what is it doing: for probes, balancers and Prometheus."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from assets.base_model.manifest import load_manifest
from assets.library.resolve import BASE_NAME
from serving.api import answers, metrics
from serving.api.context import Context, Ctx
from serving.api.keyed_route import OpenRoute
from serving.api.openapi import answers_bytes, answers_with

router = APIRouter(tags=["health"], route_class=OpenRoute)
log = logging.getLogger(__name__)

#: For each of the things that are asked.
_PATIENCE_S = 5.0
#: After this another asks beside one that is not answered.
_GIVEN_UP_S = 60.0


@router.get("/healthz", **answers_with(answers.Alive))
@router.get("/healthcheck", include_in_schema=False)
@router.get("/health", include_in_schema=False)
async def alive() -> dict[str, str]:
    """This gateway answers; says nothing of what is behind it (see /readyz)."""
    return {"status": "ok"}


@router.get("/readyz", **answers_with(answers.Ready, statuses=(200, 503)))
async def ready(context: Ctx) -> JSONResponse:
    """200 when a request could be drawn: the database answers, the store has the model, and a
    replica is up or a pool can be woken. 503 otherwise. Either way, each part's state."""
    body = await context.recent.get("ready", lambda: _parts(context))
    return JSONResponse(body, 200 if body["status"] == "ready" else 503)


async def _parts(context: Context) -> dict[str, str]:
    backends = context.backends
    parts: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "database": lambda: asyncio.to_thread(backends.directory.ping),
        "store": lambda: asyncio.to_thread(load_manifest, backends.store, BASE_NAME),
        "pools": lambda: _can_generate(context),
    }
    states = await asyncio.gather(*(_state(context, part, ask) for part, ask in parts.items()))
    found = dict(zip(parts, states, strict=True))
    is_ready = set(found.values()) == {"ok"}
    return {"status": "ready" if is_ready else "not ready", **found}


async def _state(context: Context, part: str, ask: Callable[[], Coroutine[Any, Any, Any]]) -> str:
    """One question at a time: probes of a store that never answers must not take all threads.
    After a while one more is asked, since it may be only the first that hangs; never a third."""
    now = asyncio.get_running_loop().time()
    asked = [one for one in context.probes.get(part, ()) if not one[1].done()]
    if not asked or (len(asked) == 1 and now - asked[0][0] > _GIVEN_UP_S):
        asked.append((now, asyncio.ensure_future(ask())))
    context.probes[part] = asked
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await asyncio.shield(asked[-1][1])
    except Exception as error:
        kind = type(error).__name__
        log.warning("not ready: %s: %s", part, kind)
        log.debug("not ready", exc_info=True)
        return kind  # and no more: anybody may ask
    return "ok"


class NotReady(Exception):
    """No replica is up, and no pool may start one."""


async def _can_generate(context: Context) -> None:
    for pool in await context.platform.pools():
        if "replicas" not in pool or not pool["max"]:
            continue  # its dispatcher is away, or it is switched off
        if pool["min"] == 0 or any(one["state"] == "up" for one in pool["replicas"]):
            return
    raise NotReady


@router.get("/v1/status", **answers_with(answers.Status))
async def status(context: Ctx) -> Any:
    """What waits, and what each replica is doing."""
    return await context.recent.get("status", context.status)


@router.get("/metrics", **answers_bytes("text/plain"))
async def prometheus(context: Ctx) -> Response:
    """Every pool's figures and this node's gateways' (docs/metrics.md)."""

    async def exposition() -> bytes:
        families = await context.platform.families()
        return await asyncio.to_thread(metrics.exposition, families)

    text = await context.recent.get("metrics", exposition)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
