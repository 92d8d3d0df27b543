"""Routes for asynchronous jobs' states and results."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from assets.errors import AssetNotFound, StoreError
from serving.api import idempotency, response_models
from serving.api.context import Ctx
from serving.api.keyed_route import OpenRoute
from serving.api.openapi import answers_with
from serving.jobs.store import FINISHED

router = APIRouter(tags=["generate"], route_class=OpenRoute)


@router.get("/v1/jobs/{job_id}", **answers_with(response_models.JobState))
async def poll(job_id: str, context: Ctx) -> dict[str, Any]:
    """Return a job's state, keyless: the id is unguessable.

    ``starting`` is the GPU pool's progress from zero. Failed jobs are ``completed``, as in OctoAI's
    API, with the error at ``response_url``.
    """
    job = await asyncio.to_thread(context.backends.jobs.get, job_id)
    if job is None:
        raise AssetNotFound(job_id)
    done = job.status in FINISHED
    body: dict[str, Any] = {"status": "completed" if done else job.status}
    if done:
        body["response_url"] = context.url(f"v1/jobs/{job_id}/result")
    elif starting := await context.platform.starting(job.request.gpu):
        body["starting"] = starting
    return body


@router.get("/v1/jobs/{job_id}/result", **answers_with(response_models.Generated))
async def result(job_id: str, context: Ctx) -> Response:
    """Return a finished job's response, keyless."""
    job = await asyncio.to_thread(context.backends.jobs.get, job_id)
    if job is None or job.status not in FINISHED:
        raise AssetNotFound(job_id)
    try:
        return await idempotency.answer_of(context, job)
    except StoreError:
        raise AssetNotFound(job_id) from None
