"""Events of requests as server-sent events.

A stream ends with ``done`` or ``failed``. The others have ids: a client that reconnects with
``Last-Event-ID``, to any gateway, misses nothing that is still known, or starts from a snapshot.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing

import msgspec
from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel

from assets.errors import AssetNotFound, StoreError
from serving.api.context import Context
from serving.api.errors import describe
from serving.generation.contract import Detail
from serving.generation.events import Preview, decode
from serving.generation.following import Followed
from serving.jobs.store import Job
from serving.logs import shortened

log = logging.getLogger(__name__)

_MAX_ID_CHARS = 64
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_RETRY_MS = 1_000
#: For the OpenAPI document.
EXAMPLE = """retry: 1000

event: queued
data: {"position": 0, "expected_s": 1.5}

event: step
data: {"step": 12, "steps": 30, "first": 0, "images": 1, "fraction": 0.4}

event: done
data: {"response_url": "https://images.example.com/v1/jobs/job_5wq0v8m2c7x4/result"}

"""


def wants_events(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


def detail_of_stream(*, previews: bool) -> Detail:
    return "previews" if previews else "steps"


def last_event_id(request: Request) -> str:
    """An unknown or malformed one means a snapshot."""
    value = request.headers.get("last-event-id", "")
    return value if len(value) <= _MAX_ID_CHARS and value.isascii() else ""


def event_response(events: AsyncIterator[bytes]) -> StreamingResponse:
    return EventSourceResponse(events, headers=_HEADERS)


def wire(event: bytes) -> tuple[str, dict[str, object]] | None:
    """An event's name and JSON; None for a kind of a newer version."""
    decoded = decode(event)
    if decoded is None:
        return None
    fields: dict[str, object] = msgspec.to_builtins(decoded)
    name = str(fields.pop("type"))
    if isinstance(decoded, Preview):
        fields["jpeg_b64"] = fields.pop("data")
    else:
        fields.pop("data", None)
    return name, fields


def message(name: str, fields: Mapping[str, object], event_id: str | None = None) -> bytes:
    return format_sse_event(data_str=json.dumps(fields), event=name, id=event_id)


def failed(error: Exception, request_id: str) -> bytes:
    """The last event of a request that failed: the body of the response that it would have had,
    and its status."""
    answer = describe(error)
    return message("failed", {**answer.body(request_id), "status": answer.status})


async def messages(
    context: Context, events: AsyncGenerator[Followed | None], *, ends_early: bool = True
) -> AsyncGenerator[bytes]:
    """Yield followed events as messages; with ``ends_early``, until this gateway shuts down."""
    yield format_sse_event(retry=_RETRY_MS)
    async with aclosing(events):
        async for followed in events:
            if ends_early and context.is_draining.is_set():
                return
            if followed is None:
                yield KEEPALIVE_COMMENT
            elif (named := wire(followed.event)) is not None:
                yield message(*named, followed.id)


async def job_events(
    context: Context,
    job: Job,
    detail: Detail,
    after: str,
    body_of: Callable[[Job], Awaitable[BaseModel]] | None = None,
) -> AsyncGenerator[bytes]:
    """Yield a job's messages until it ends; the last has its body, or the URL of its result."""
    ended = context.jobs.watch.future(job.id)
    following = context.events.follow(job.pool, job.id, detail, after, ended)
    with context.streams.following(job.id):
        async with aclosing(messages(context, following)) as texts:
            async for text in texts:
                yield text
    if not ended.done():  # the gateway shuts down; the client finds another
        return
    body: dict[str, object] = {"response_url": context.url(f"v1/jobs/{job.id}/result")}
    try:
        job = await asyncio.shield(ended)
        if job.error is None and body_of is not None:
            body = (await body_of(job)).model_dump()
    except (AssetNotFound, StoreError) as error:  # the job or its result has expired
        yield failed(error, job.id)
        return
    except Exception:  # such as a busy database: the job continues, and the client comes again
        log.exception("the events of %s end early", shortened(job.id))
        return
    if job.error is None:
        yield message("done", body)
    elif job.error.failure is None:
        yield message("failed", {**(job.error.body or {}), "status": job.error.status})
    else:
        yield failed(job.error.failure.error(), job.id)
