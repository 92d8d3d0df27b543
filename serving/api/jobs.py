"""Routes for the state and the result of asynchronous jobs."""

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
    """Return the state of a job. No key is needed: the id is unguessable.

    ``starting`` is the start-up progress of the GPU pool while it scales up from zero. A failed
    job is ``completed``, too, as in OctoAI's API; its ``response_url`` returns the error.
    """
    job = await asyncio.to_thread(context.backends.jobs.get, job_id)
    if job is None:
        raise AssetNotFound(job_id)
    done = job.status in FINISHED
    body: dict[str, Any] = {"status": "completed" if done else job.status}
    if done:
        body["response_url"] = context.url(f"v1/jobs/{job_id}/result")
    elif starting := await context.platform.starting(job.request.get("gpu") or ""):
        body["starting"] = starting
    return body


@router.get("/v1/jobs/{job_id}/result", **answers_with(response_models.Generated))
async def result(job_id: str, context: Ctx) -> Response:
    """Return the response of a finished job. No key is needed."""
    job = await asyncio.to_thread(context.backends.jobs.get, job_id)
    if job is None or job.status not in FINISHED:
        raise AssetNotFound(job_id)
    try:
        return await idempotency.answer_of(context, job)
    except StoreError:
        raise AssetNotFound(job_id) from None
