"""OctoAI's generation route, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.background import BackgroundTask

from assets.principal import Principal
from serving.api import idempotency, response_models
from serving.api.context import Context, Ctx
from serving.api.dialects.octoai.generate import GenerateRequest, answer
from serving.api.keyed_route import Authenticated, CostlyRoute
from serving.api.openapi import answers_with, reads_headers
from serving.errors import Cancelled
from serving.jobs.store import Job

router = APIRouter(tags=["generate"], route_class=CostlyRoute)
T = TypeVar("T")


_HEADERS = reads_headers(
    Idempotency_Key="Requests with the same key are generated once.",
    X_OctoAI_Async="1: return at once with a URL to poll.",
)


@router.post(
    "/generate/sdxl",
    **answers_with(response_models.GeneratedOrAccepted),
    openapi_extra=_HEADERS,
)
async def generate_sdxl(
    body: GenerateRequest, request: Request, context: Ctx, principal: Authenticated
) -> dict[str, Any] | Response:
    """Generate images, once per ``Idempotency-Key``.

    ``X-OctoAI-Async: 1`` returns at once with a URL to poll.
    """
    key = idempotency.key_of(request)
    if request.headers.get("x-octoai-async") == "1":
        job = await idempotency.accept(context, principal, body, key)
        return {"response_id": job.id, "poll_url": context.url(f"v1/jobs/{job.id}")}
    if key is not None:
        done = await once(body, request, context, principal, key)
        return await idempotency.answer_of(context, done)
    generated = await run_while_connected(
        request, context.platform.generate(principal, body.to_request())
    )
    settle = BackgroundTask(context.platform.settle, generated)
    return JSONResponse(answer(generated), background=settle)


async def once(
    body: GenerateRequest, request: Request, context: Context, principal: Principal, key: str
) -> Job:
    """Wait for an idempotency key's job and return it."""
    job = await idempotency.accept(context, principal, body, key)
    waiting = idempotency.finished(context, job, context.platform.timeout_s)
    return await run_while_connected(request, waiting)


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``; cancel it if the client disconnects.

    Raises:
        Cancelled: the client disconnected.
    """
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client disconnected")
        return task.result()
    finally:
        for other in (task, disconnected):
            if not other.done():
                other.cancel()
                with suppress(asyncio.CancelledError):
                    await other


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
