"""OctoAI's generation route, synchronous and asynchronous."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.background import BackgroundTask

from serving.api import idempotency
from serving.api.connected import run_while_connected
from serving.api.context import Context, Ctx
from serving.api.dialects.octoai.generate import GenerateRequest, answer
from serving.api.keyed_route import Authenticated, CostlyRoute
from serving.api.models.generation import Accepted, GeneratedOrAccepted
from serving.api.route_options import answers_with, reads_headers
from serving.generation.sizes import check_wire_size
from serving.jobs.results import EarlierResult
from serving.jobs.store import Job

router = APIRouter(tags=["generate"], route_class=CostlyRoute)


_HEADERS = reads_headers(
    Idempotency_Key="Requests with the same key are generated once.",
    X_OctoAI_Async="1: return at once with a URL to poll.",
)


@router.post(
    "/generate/sdxl",
    **answers_with(GeneratedOrAccepted),
    openapi_extra=_HEADERS,
)
async def generate_sdxl(
    body: GenerateRequest, request: Request, context: Ctx, principal: Authenticated
) -> Accepted | Response:
    """Generate images, once per ``Idempotency-Key``.

    ``X-OctoAI-Async: 1`` returns at once with a URL to poll.
    """
    key = idempotency.key_of(request)
    check_wire_size(body.width, body.height)
    wanted = body.to_request()
    if idempotency.text_header(request, "X-OctoAI-Async") == "1":
        job = await idempotency.accept(context, principal, wanted, body, key)
        return Accepted(response_id=job.id, poll_url=context.url(f"v1/jobs/{job.id}"))
    if key is not None:
        job = await idempotency.accept(context, principal, wanted, body, key)
        return await job_answer(context, await idempotency.finished(context, request, job))
    generated = await run_while_connected(request, context.platform.generate(principal, wanted))
    settle = BackgroundTask(context.platform.settle, generated)
    return _response(answer(generated), settle)


def _response(body: bytes, background: BackgroundTask | None = None) -> Response:
    return Response(body, media_type="application/json", background=background)


async def job_answer(context: Context, job: Job) -> Response:
    """Return a finished job's response.

    Raises:
        StoreError: the result is gone.
    """
    if job.error is not None:
        return idempotency.error_of(job)
    results = context.jobs.results
    stored = await asyncio.to_thread(results.load, job.id)
    if isinstance(stored, EarlierResult):
        return JSONResponse(stored.document)
    return _response(answer(await asyncio.to_thread(results.generation, stored)))
