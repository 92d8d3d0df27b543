"""The native generation route: images by URL, keyless for an open tenant."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.background import BackgroundTask

from assets.principal import Principal
from assets.storage.object_paths import image_key
from assets.storage.object_store import put_bytes
from serving.api import idempotency
from serving.api.connected import run_while_connected
from serving.api.context import Context, Ctx
from serving.api.dialects.octoai.generate import GenerateRequest
from serving.api.event_stream import (
    EXAMPLE,
    detail_of_stream,
    event_response,
    failed,
    job_events,
    last_event_id,
    message,
    messages,
    wants_events,
)
from serving.api.keyed_route import Authenticated, CostlyRoute, bearer
from serving.api.models.generation import GeneratedFiles, Receipt, StoredImage
from serving.api.route_options import answers_or_streams, reads_headers
from serving.generation.contract import Detail, GenerationRequest
from serving.generation.following import Followed
from serving.generation.seeds import json_seed
from serving.generation.service import Generation, NewGeneration, RunningGeneration
from serving.jobs.idempotency import make_room
from serving.jobs.results import EarlierResult
from serving.jobs.store import Job


class OpenTenantRoute(CostlyRoute):
    """Accepts keyless requests to an open tenant."""

    needs_key = False

    async def authenticate(self, context: Context, request: Request) -> Principal:
        if bearer(request) is None and context.open_tenant:
            keyring = context.backends.directory.keyring
            return await asyncio.to_thread(
                keyring.anonymous, context.open_tenant, context.open_requests_per_min
            )
        return await super().authenticate(context, request)


router = APIRouter(tags=["generate"], route_class=OpenTenantRoute)


_HEADERS = reads_headers(
    Idempotency_Key="Requests with the same key are generated once.",
    Accept="text/event-stream: follow the generation; the event `done` has the response.",
)
Previews = Query(False, description="With Accept: text/event-stream, send previews, too.")


@router.post("/generate", **answers_or_streams(GeneratedFiles, EXAMPLE), openapi_extra=_HEADERS)
async def generate_native(
    body: GenerateRequest,
    request: Request,
    context: Ctx,
    principal: Authenticated,
    previews: bool = Previews,
) -> Response:
    """Generate and store images; return their URLs.

    A key is needed unless AO_OPEN_TENANT is set. ``Accept: text/event-stream`` follows the
    generation as server-sent events; errors of the request still have their own status.
    """
    # A preview would show what the policy has not ruled on.
    gate = context.platform.gate
    previews = previews and not gate.judges_images(requested=body.enable_safety)
    detail = detail_of_stream(previews=previews) if wants_events(request) else None
    key = idempotency.key_of(request)
    wanted = body.to_request()
    if key is not None:
        job = await idempotency.accept(context, principal, wanted, body, key)
        if detail is None:
            return await _job_response(context, await idempotency.finished(context, request, job))
        if gate.judges_images(requested=job.request.enable_safety):
            detail = detail_of_stream(previews=False)
        context.streams.check(job.id)
        body_of = partial(_job_body, context)
        return event_response(job_events(context, job, detail, last_event_id(request), body_of))
    await make_room(context.platform, principal)
    if detail is not None:
        return await _streamed(context, principal, wanted, request, detail)
    generated = await run_while_connected(request, context.platform.generate(principal, wanted))
    try:
        response = await _stored(context, principal, generated, body.image_encoding)
    except BaseException:
        await context.platform.release(generated)
        raise
    settle = BackgroundTask(context.platform.settle, generated)
    return JSONResponse(response.model_dump(), background=settle)


async def _streamed(
    context: Context,
    principal: Principal,
    wanted: GenerationRequest,
    request: Request,
    detail: Detail,
) -> Response:
    """Return the stream once the request is queued; what refuses it before has its own status."""
    running = await context.platform.start(principal, wanted)
    events = context.events.follow(running.pool, running.id, detail, "", running.task)

    async def begun() -> Followed | None:
        first = asyncio.ensure_future(anext(events, None))
        try:
            await asyncio.wait({running.task, first}, return_when=asyncio.FIRST_COMPLETED)
            if running.task.done():
                running.task.result()
            return await first
        finally:
            if not first.done():
                first.cancel()
                await asyncio.wait([first])

    try:
        first = await run_while_connected(request, begun())
    except BaseException:
        running.task.cancel()
        await events.aclose()
        raise
    followed = _after(first, events)
    return event_response(_stream(context, principal, running, followed, wanted.params.encoding))


async def _after(
    first: Followed | None, events: AsyncGenerator[Followed | None]
) -> AsyncGenerator[Followed | None]:
    async with aclosing(events):
        yield first
        async for event in events:
            yield event


async def _stream(
    context: Context,
    principal: Principal,
    running: RunningGeneration,
    events: AsyncGenerator[Followed | None],
    encoding: str,
) -> AsyncGenerator[bytes]:
    """The messages of a request of this connection: when it closes, the request is cancelled."""
    generated: NewGeneration | None = None
    is_delivered = False
    try:
        async with aclosing(messages(context, events, ends_early=False)) as texts:
            async for text in texts:
                yield text
        try:
            generated = await running.task
            response = await _stored(context, principal, generated, encoding)
        except Exception as error:
            yield failed(error, running.id)
            return
        yield message("done", response.model_dump())
        is_delivered = True
    finally:
        # In tasks of their own: this one may be cancelled.
        if is_delivered and generated is not None:
            context.spawn(context.platform.settle(generated))
        else:
            running.task.cancel()
            context.spawn(_release(context, running))


async def _release(context: Context, running: RunningGeneration) -> None:
    with suppress(asyncio.CancelledError, Exception):  # then it has released itself
        await context.platform.release(await running.task)


async def _job_response(context: Context, job: Job) -> Response:
    if job.error is not None:
        return idempotency.error_of(job)
    return JSONResponse((await _job_body(context, job)).model_dump())


async def _job_body(context: Context, job: Job) -> GeneratedFiles:
    """The response of a completed job, whose images get their URLs now.

    Raises:
        StoreError: the result is gone.
    """
    results = context.jobs.results
    stored = await asyncio.to_thread(results.load, job.id)
    if isinstance(stored, EarlierResult):
        return await _earlier_body(context, job, stored.document)
    await asyncio.to_thread(results.publish, job.id, job.tenant_id, stored)
    generation = stored.generation()
    return _body(context, generation, stored.images)


async def _earlier_body(context: Context, job: Job, document: dict[str, Any]) -> GeneratedFiles:
    encoding = job.request.params.encoding
    keys = []
    for index, image in enumerate(document["images"]):
        name = f"{context.signer.derived('picture', job.id, str(index))}.{encoding}"
        keys.append(image_key(name))
        await _store(context, job.tenant_id, keys[-1], base64.b64decode(image["image_b64"]))
    seeds = [image["seed"] for image in document["images"]]
    receipt = Receipt.model_validate(document["receipt"])
    files = [_file(context, key) for key in keys]
    return _files_body(document["request_id"], seeds, receipt, files)


async def _stored(
    context: Context, principal: Principal, generated: Generation, encoding: str
) -> GeneratedFiles:
    """Store the images under unguessable names; return the response."""
    keys = []
    for index, image in enumerate(generated.result.images):
        if generated.result.is_removed(index):
            keys.append("")
            continue
        keys.append(image_key(f"{secrets.token_urlsafe(24)}.{encoding}"))
        await _store(context, principal.tenant_id, keys[-1], image)
    return _body(context, generated, keys)


async def _store(context: Context, tenant_id: str, key: str, data: bytes) -> None:
    await asyncio.to_thread(put_bytes, context.backends.store, key, data)
    await asyncio.to_thread(context.backends.blobs.keep, key, tenant_id, len(data))


def _body(context: Context, generated: Generation, keys: Sequence[str]) -> GeneratedFiles:
    """``keys``: empty where an image is withheld."""
    safety = generated.result.safety
    files = [
        _file(context, key, safety[index].score if safety else None)
        for index, key in enumerate(keys)
    ]
    return _files_body(generated.request_id, generated.seeds, Receipt.of(generated), files)


def _file(context: Context, key: str, score: float | None = None) -> StoredImage:
    if not key:
        return StoredImage(
            file_key=None, public_url=None, removed_for_safety=True, safety_score=score
        )
    direct = context.backends.store.signed_get(key, context.url_expires_s)
    url = direct or context.url(f"files/{key.rpartition('/')[2]}")
    return StoredImage(file_key=key, public_url=url, safety_score=score)


def _files_body(
    request_id: str, seeds: Sequence[int], receipt: Receipt, files: list[StoredImage]
) -> GeneratedFiles:
    first = next((file for file in files if not file.removed_for_safety), files[0])
    return GeneratedFiles(
        file_key=first.file_key,
        public_url=first.public_url,
        files=files,
        seeds=[json_seed(seed) for seed in seeds],
        request_id=request_id,
        receipt=receipt,
    )
