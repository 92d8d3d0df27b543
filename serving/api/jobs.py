"""Routes for asynchronous jobs: states, events, results, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from assets.access import require
from assets.errors import AssetNotFound, StoreError
from serving.api.context import Context, Ctx
from serving.api.dialects.octoai.routes import job_answer
from serving.api.event_stream import (
    EXAMPLE,
    detail_of_stream,
    event_response,
    job_events,
    last_event_id,
    wire,
)
from serving.api.keyed_route import Authenticated, KeyedRoute, OpenRoute, SearchRoute
from serving.api.models.common import timestamp
from serving.api.models.generation import Generated
from serving.api.models.jobs import JobPage, JobProgress, JobState, ListedJob, PoolStart
from serving.api.request_model import Instant
from serving.api.route_options import answers_with, streams
from serving.errors import InvalidRequest
from serving.generation.contract import GenerationParams
from serving.generation.events import kind_of
from serving.jobs.jobs import asked_by
from serving.jobs.store import Job, JobQuery, JobStatus

_DEFAULT_STEPS = GenerationParams(prompt="").steps

router = APIRouter(tags=["generate"], route_class=OpenRoute)
keyed_router = APIRouter(tags=["generate"], route_class=KeyedRoute)
search_router = APIRouter(tags=["generate"], route_class=SearchRoute)


@search_router.get("/v1/jobs")
async def list_jobs(
    context: Ctx,
    principal: Authenticated,
    status: Annotated[list[JobStatus], Query(default_factory=list, max_length=5)],
    gpu: Annotated[str | None, Query(max_length=64)] = None,
    since: Instant | None = None,
    until: Instant | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    after: Annotated[str, Query(max_length=256)] = "",
) -> JobPage:
    """List jobs, newest first, while their results are kept: owners see the organisation's, other
    members their own, because an id gives access to the images.

    ``gpu`` is a pool or kind of GPU. ``after`` is the last page's ``next``, valid despite changes.
    """
    require(principal, "use")
    query = JobQuery(
        statuses=status,
        since_s=since.timestamp() if since else 0.0,
        until_s=until.timestamp() if until else None,
        pools=() if gpu is None else context.platform.pools.called(gpu),
        asked_by=asked_by(principal),
        after=_place(after),
        limit=limit,
    )
    jobs = await asyncio.to_thread(context.jobs.store.page, principal.tenant_id, query)
    has_more = len(jobs) > limit
    shown = jobs[:limit]
    last = shown[-1] if has_more else None
    return JobPage(
        data=[_listed(job) for job in shown],
        has_more=has_more,
        next=f"{last.created_at_s!r}:{last.id}" if last else None,
    )


def _place(after: str) -> tuple[float, str] | None:
    if not after:
        return None
    created, _, job_id = after.partition(":")
    try:
        return float(created), job_id
    except ValueError:
        raise InvalidRequest("after", "not the `next` of a page") from None


def _listed(job: Job) -> ListedJob:
    request = job.stored_request
    return ListedJob(
        id=job.id,
        status=job.status,
        created_at=timestamp(job.created_at_s),
        finished_at=timestamp(job.finished_at_s) if job.finished_at_s else None,
        images=len(request.get("seeds", ())),
        steps=request.get("params", {}).get("steps", _DEFAULT_STEPS),
        gpu=job.pool,
        priority=request.get("priority", 0),
        key=job.asked_by.get("key_id", ""),
        attempts_failed=job.failures,
    )


@router.get("/v1/jobs/{job_id}")
async def get_job(job_id: str, context: Ctx) -> JobState:
    """Return a job's state, keyless: the id is unguessable.

    ``starting`` is the GPU pool's progress from zero, ``progress`` the job's. Failed and cancelled
    jobs are ``completed``, as in OctoAI's API, with the error at ``response_url``; ``state`` tells
    them apart.
    """
    job = await context.jobs.get(job_id)
    body = _state(context, job)
    if job.is_finished:
        return body
    starting, events = await asyncio.gather(
        context.monitor.starting(job.pool),
        context.events.progress(job.pool, job.id),
    )
    if starting is not None:
        body.starting = PoolStart.of(starting)
    if progress := _progress(events):
        body.progress = JobProgress.model_validate(progress)
    return body


def _state(context: Context, job: Job) -> JobState:
    if job.status in ("pending", "running"):
        return JobState(status=job.status, state=job.status)
    url = context.url(f"v1/jobs/{job.id}/result")
    return JobState(status="completed", state=job.status, response_url=url)


def _progress(events: Sequence[bytes]) -> dict[str, object]:
    """The fields of the present phase's events; ``phase`` names the last one."""
    progress: dict[str, object] = {}
    for event in events:
        named = wire(event)
        if named is not None and kind_of(event) != "starting":
            progress |= {"phase": named[0], **named[1]}
    return progress


@router.get("/v1/jobs/{job_id}/events", **streams(EXAMPLE))
async def follow_job(
    job_id: str, request: Request, context: Ctx, previews: bool = False
) -> StreamingResponse:
    """Follow a job as server-sent events, keyless: the id is unguessable.

    ``queued``, ``starting``, ``assigned``, ``fetching``, ``step``, ``preview`` (if asked for) and
    ``image``; the last is ``done`` or ``failed``. ``Last-Event-ID`` continues a stream.
    """
    job = await context.jobs.get(job_id)
    context.streams.check(job_id)
    gate = context.platform.gate
    previews = previews and not gate.judges_images(requested=job.request.enable_safety)
    detail = detail_of_stream(previews=previews)
    return event_response(job_events(context, job, detail, last_event_id(request)))


@router.get("/v1/jobs/{job_id}/result", **answers_with(Generated))
async def get_job_result(job_id: str, context: Ctx) -> Response:
    """Return a finished job's response, keyless."""
    job = await context.jobs.get(job_id)
    if not job.is_finished:
        raise AssetNotFound(job_id)
    try:
        return await job_answer(context, job)
    except StoreError:
        raise AssetNotFound(job_id) from None


@keyed_router.post("/v1/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, context: Ctx, principal: Authenticated) -> JobState:
    """Cancel a job: at once if it waits, within three steps if it generates.

    Only what its engine has used is charged. A job that has ended stays as it is. Members cancel
    their own jobs, owners all of the organisation's.
    """
    body = _state(context, await context.jobs.cancel(principal, job_id))
    body.response_url = context.url(f"v1/jobs/{job_id}/result")
    return body
