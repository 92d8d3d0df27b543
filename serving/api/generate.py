"""Generation: OctoAI's route, now or later, and the simplest door of all."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from assets.errors import AssetNotFound, StoreError
from assets.keys import picture_key, result_key
from assets.store import put_bytes, read_bytes
from serving.api.context import Ctx, Who, bearer
from serving.api.wire_generate import GenerateRequest, answer, receipt
from serving.errors import Cancelled

router = APIRouter(tags=["generate"])
T = TypeVar("T")


@router.post("/generate/sdxl")
async def generate_sdxl(
    body: GenerateRequest, request: Request, context: Ctx, who: Who
) -> dict[str, Any]:
    """Draw; with the header ``X-OctoAI-Async: 1``, answer at once with where to poll."""
    order = body.order()
    if request.headers.get("x-octoai-async") == "1":
        await context.platform.check(who, order)
        # The seeds are fixed now, so that a second attempt draws the same pictures.
        fixed = body.model_copy(update={"seed": list(order.seeds)})
        job_id = await asyncio.to_thread(
            context.jobs.add, who.tenant_id, who.tenant_name, who.weight, fixed.model_dump()
        )
        return {"response_id": job_id, "poll_url": context.url(f"v1/jobs/{job_id}")}
    generated = await _while_connected(request, context.platform.generate(who, order))
    return answer(generated)


@router.get("/v1/jobs/{job_id}")
async def poll(job_id: str, context: Ctx) -> dict[str, Any]:
    """No key needed: the id is the capability, and one client polls without a key.

    A job that failed is ``completed`` on the wire (there is no other last state);
    its ``response_url`` then answers with the error.
    """
    job = await asyncio.to_thread(context.jobs.get, job_id)
    if job is None:
        raise AssetNotFound(job_id)
    done = job.status in ("completed", "failed")
    body: dict[str, Any] = {"status": "completed" if done else job.status}
    if done:
        body["response_url"] = context.url(f"v1/jobs/{job_id}/result")
    return body


@router.get("/v1/jobs/{job_id}/result")
async def result(job_id: str, context: Ctx) -> Response:
    job = await asyncio.to_thread(context.jobs.get, job_id)
    if job is None or job.status not in ("completed", "failed"):
        raise AssetNotFound(job_id)
    if job.error is not None:
        return JSONResponse(job.error["body"], job.error["status"])
    try:
        data = await asyncio.to_thread(read_bytes, context.store, result_key(job_id))
    except StoreError:
        raise AssetNotFound(job_id) from None
    return Response(data, media_type="application/json")


@router.post("/generate")
async def generate_simply(body: GenerateRequest, request: Request, context: Ctx) -> dict[str, Any]:
    """The picture goes to the object store; the answer says where it can be fetched.

    Without a key only where the operator has named a tenant for it (AO_OPEN_TENANT).
    """
    token = bearer(request)
    if token is None and context.open_tenant:
        who = await asyncio.to_thread(context.directory.principal_of_tenant, context.open_tenant)
    else:
        who = await asyncio.to_thread(context.directory.authenticate, token)
    order = body.order()
    generated = await _while_connected(request, context.platform.generate(who, order))
    files = []
    for image in generated.drawing.images:
        name = f"{secrets.token_urlsafe(24)}.{order.encoding}"
        key = picture_key(name)
        await asyncio.to_thread(put_bytes, context.store, key, image)
        direct = context.store.signed_get(key, context.url_expires_s)
        files.append({"file_key": key, "public_url": direct or context.url(f"files/{name}")})
    return {
        **files[0],
        "files": files,
        "seeds": list(generated.seeds),
        "request_id": generated.request_id,
        "receipt": receipt(generated),
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
