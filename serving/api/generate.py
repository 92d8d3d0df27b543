"""Generation: OctoAI's route, now or later, and the simplest door of all."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.background import BackgroundTask

from assets.errors import AssetNotFound, StoreError
from assets.keys import picture_key, result_key
from assets.principal import Principal
from assets.store import put_bytes, read_bytes
from serving.api import idempotency
from serving.api.context import Context, Ctx, Spender, bearer, spend
from serving.api.wire_generate import GenerateRequest, answer
from serving.errors import Cancelled
from serving.jobs.jobs import FINISHED, Job
from serving.logs import note

router = APIRouter(tags=["generate"])
T = TypeVar("T")


@router.post("/generate/sdxl", response_model=None)
async def generate_sdxl(
    body: GenerateRequest, request: Request, context: Ctx, who: Spender
) -> dict[str, Any] | Response:
    """Draw; with the header ``X-OctoAI-Async: 1``, answer at once with where to poll. With an
    ``Idempotency-Key``, draw once however often it is asked."""
    key = idempotency.key_of(request)
    if request.headers.get("x-octoai-async") == "1":
        job = await idempotency.accept(context, who, body, key)
        return {"response_id": job.id, "poll_url": context.url(f"v1/jobs/{job.id}")}
    if key is not None:
        done = await _once(body, request, context, who, key)
        return await idempotency.answer_of(context, done)
    generated = await _while_connected(request, context.platform.generate(who, body.order()))
    settle = BackgroundTask(context.platform.settle, generated)
    return JSONResponse(answer(generated), background=settle)


async def _once(
    body: GenerateRequest, request: Request, context: Context, who: Principal, key: str
) -> Job:
    """The finished job of this request, whichever arrival of it started the job."""
    job = await idempotency.accept(context, who, body, key)
    waiting = idempotency.finished(context, job, context.platform.timeout_s)
    return await _while_connected(request, waiting)


@router.get("/v1/jobs/{job_id}")
async def poll(job_id: str, context: Ctx) -> dict[str, Any]:
    """No key needed: the id is the capability, and one client polls without a key.

    While the GPUs that it needs are asleep, ``starting`` says how far they are.
    A job that failed is ``completed`` on the wire (there is no other last state);
    its ``response_url`` then answers with the error.
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


@router.get("/v1/jobs/{job_id}/result")
async def result(job_id: str, context: Ctx) -> Response:
    job = await asyncio.to_thread(context.backends.jobs.get, job_id)
    if job is None or job.status not in FINISHED:
        raise AssetNotFound(job_id)
    try:
        return await idempotency.answer_of(context, job)
    except StoreError:
        raise AssetNotFound(job_id) from None


@router.post("/generate", response_model=None)
async def generate_simply(
    body: GenerateRequest, request: Request, context: Ctx
) -> dict[str, Any] | Response:
    """The picture goes to the object store; the answer says where it can be fetched.

    Without a key only where the operator has named a tenant for it (AO_OPEN_TENANT).
    """
    token = bearer(request)
    if token is None and context.open_tenant:
        who = await asyncio.to_thread(
            context.backends.directory.keyring.principal_of_tenant, context.open_tenant
        )
    else:
        who = await asyncio.to_thread(context.backends.directory.keyring.authenticate, token)
    note(tenant=who.tenant_id)
    await spend(context, request, who)
    key = idempotency.key_of(request)
    if key is not None:
        job = await _once(body, request, context, who, key)
        if job.error is not None:
            return await idempotency.answer_of(context, job)
        stored = await asyncio.to_thread(read_bytes, context.backends.store, result_key(job.id))
        return await _put_pictures(context, json.loads(stored), body.image_encoding, job)
    generated = await _while_connected(request, context.platform.generate(who, body.order()))
    try:
        simple = await _put_pictures(context, answer(generated), body.image_encoding)
    except BaseException:
        await context.platform.release(generated)
        raise
    return JSONResponse(simple, background=BackgroundTask(context.platform.settle, generated))


async def _put_pictures(
    context: Context, result: dict[str, Any], encoding: str, job: Job | None = None
) -> dict[str, Any]:
    """The simple door's answer, once its pictures are in the store."""
    files = []
    for index, image in enumerate(result["images"]):
        # Of an idempotent request the same each time; nobody can guess either.
        secret = context.signer.derived("picture", job.id, str(index)) if job else None
        name = f"{secret or secrets.token_urlsafe(24)}.{encoding}"
        stored_key = picture_key(name)
        data = base64.b64decode(image["image_b64"])
        await asyncio.to_thread(put_bytes, context.backends.store, stored_key, data)
        direct = context.backends.store.signed_get(stored_key, context.url_expires_s)
        files.append({"file_key": stored_key, "public_url": direct or context.url(f"files/{name}")})
    return {
        **files[0],
        "files": files,
        "seeds": [image["seed"] for image in result["images"]],
        "request_id": result["request_id"],
        "receipt": result["receipt"],
    }


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
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
