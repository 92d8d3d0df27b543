"""Generation: OctoAI's route, now or later."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.background import BackgroundTask

from assets.principal import Principal
from serving.api import answers, idempotency
from serving.api.context import Context, Ctx
from serving.api.dialects.octoai.generate import GenerateRequest, answer
from serving.api.keyed_route import CostlyRoute, Who
from serving.api.openapi import answers_with, reads_headers
from serving.errors import Cancelled
from serving.jobs.store import Job

router = APIRouter(tags=["generate"], route_class=CostlyRoute)
T = TypeVar("T")


_HEADERS = reads_headers(
    Idempotency_Key="However often it is asked with this key, it is generated once.",
    X_OctoAI_Async="1: answer at once with where to poll.",
)


@router.post(
    "/generate/sdxl",
    **answers_with(answers.GeneratedOrAccepted),
    openapi_extra=_HEADERS,
)
async def generate_sdxl(
    body: GenerateRequest, request: Request, context: Ctx, who: Who
) -> dict[str, Any] | Response:
    """Draw; with the header ``X-OctoAI-Async: 1``, answer at once with where to poll. With an
    ``Idempotency-Key``, draw once however often it is asked."""
    key = idempotency.key_of(request)
    if request.headers.get("x-octoai-async") == "1":
        job = await idempotency.accept(context, who, body, key)
        return {"response_id": job.id, "poll_url": context.url(f"v1/jobs/{job.id}")}
    if key is not None:
        done = await once(body, request, context, who, key)
        return await idempotency.answer_of(context, done)
    generated = await while_connected(request, context.platform.generate(who, body.order()))
    settle = BackgroundTask(context.platform.settle, generated)
    return JSONResponse(answer(generated), background=settle)


async def once(
    body: GenerateRequest, request: Request, context: Context, who: Principal, key: str
) -> Job:
    """The finished job of this request, whichever arrival of it started the job."""
    job = await idempotency.accept(context, who, body, key)
    waiting = idempotency.finished(context, job, context.platform.timeout_s)
    return await while_connected(request, waiting)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client went away")
        return task.result()
    finally:
        for other in (task, gone):
            if not other.done():
                other.cancel()
                with suppress(asyncio.CancelledError):
                    await other


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
