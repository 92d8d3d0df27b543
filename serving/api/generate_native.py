"""The native generation route: images by URL, keyless for an open tenant."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.background import BackgroundTask

from assets.principal import Principal
from assets.storage.object_paths import image_key, result_key
from assets.storage.object_store import put_bytes, read_bytes
from serving.api import idempotency, response_models
from serving.api.context import Context, Ctx
from serving.api.dialects.octoai.generate import GenerateRequest, answer
from serving.api.generate import once, run_while_connected
from serving.api.keyed_route import Authenticated, CostlyRoute, bearer
from serving.api.openapi import answers_with, reads_headers
from serving.jobs.idempotency import make_room
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
)


@router.post("/generate", **answers_with(response_models.GeneratedFiles), openapi_extra=_HEADERS)
async def generate_native(
    body: GenerateRequest, request: Request, context: Ctx, principal: Authenticated
) -> dict[str, Any] | Response:
    """Generate and store images; return their URLs.

    A key is needed unless AO_OPEN_TENANT is set.
    """
    key = idempotency.key_of(request)
    if key is not None:
        job = await once(body, request, context, principal, key)
        if job.error is not None:
            return await idempotency.answer_of(context, job)
        stored = await asyncio.to_thread(read_bytes, context.backends.store, result_key(job.id))
        return await _store_images(context, principal, json.loads(stored), body.image_encoding, job)
    await make_room(context.platform, principal)
    generated = await run_while_connected(
        request, context.platform.generate(principal, body.to_request())
    )
    try:
        response = await _store_images(context, principal, answer(generated), body.image_encoding)
    except BaseException:
        await context.platform.release(generated)
        raise
    return JSONResponse(response, background=BackgroundTask(context.platform.settle, generated))


async def _store_images(
    context: Context,
    principal: Principal,
    result: dict[str, Any],
    encoding: str,
    job: Job | None = None,
) -> dict[str, Any]:
    files = []
    for index, image in enumerate(result["images"]):
        # Stable for a job; always unguessable.
        secret = context.signer.derived("picture", job.id, str(index)) if job else None
        name = f"{secret or secrets.token_urlsafe(24)}.{encoding}"
        stored_key = image_key(name)
        data = base64.b64decode(image["image_b64"])
        await asyncio.to_thread(put_bytes, context.backends.store, stored_key, data)
        await asyncio.to_thread(
            context.backends.blobs.keep, stored_key, principal.tenant_id, len(data)
        )
        direct = context.backends.store.signed_get(stored_key, context.url_expires_s)
        files.append({"file_key": stored_key, "public_url": direct or context.url(f"files/{name}")})
    return {
        **files[0],
        "files": files,
        "seeds": [image["seed"] for image in result["images"]],
        "request_id": result["request_id"],
        "receipt": result["receipt"],
    }
