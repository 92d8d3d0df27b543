"""``Idempotency-Key``: requests with the same key are generated once.

The tenant and key determine a job's id: the database decides which request is first, across
gateways. All get its response, request errors included; after a server error or refusal, the next
request restarts it. Keys live as long as results (AO_RESULTS_KEPT_S).
"""

from __future__ import annotations

import asyncio
import hashlib

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from assets.access import require
from assets.errors import AssetNotFound
from assets.failpoint import reach
from assets.principal import Principal
from assets.storage.object_paths import result_key
from assets.storage.object_store import read_bytes
from serving.api.context import Context
from serving.api.dialects.octoai.generate import GenerateRequest
from serving.errors import DeadlineExceeded, InvalidRequest
from serving.jobs.store import Job
from serving.logs import note, shortened

HEADER = "Idempotency-Key"
_MAX_KEY_CHARS = 255


def key_of(request: Request) -> str | None:
    """Return the key, if any. Raises InvalidRequest if malformed."""
    key = request.headers.get(HEADER)
    if key is not None and not (
        0 < len(key) <= _MAX_KEY_CHARS and key.isascii() and key.isprintable()
    ):
        raise InvalidRequest(
            HEADER, f"the key must be 1 to {_MAX_KEY_CHARS} printable ASCII characters"
        )
    return key


#: Without effect on the images.
_NO_CONTENT = {"priority", "gpu"}


async def accept(
    context: Context, principal: Principal, body: GenerateRequest, key: str | None
) -> Job:
    """Return the request's job, new or existing.

    Raises:
        Forbidden: the role may not generate.
        AssetError, InvalidRequest: invalid; the key stays unused.
        InvalidRequest: the key of another request.
        Refused: too many unfinished jobs.
        BudgetExceeded, QuotaExceeded: no budget or storage left.
    """
    require(principal, "use")
    job = job_id = digest = None
    if key is not None:
        digest = hashlib.sha256(body.model_dump_json(exclude=_NO_CONTENT).encode()).hexdigest()
        # Anonymous clients must not learn of each other's keys in their shared tenant.
        owner = (
            (principal.queue_id, digest)
            if principal.role == "anonymous"
            else (principal.tenant_id,)
        )
        job_id = "job_" + context.signer.derived("job", *owner, key)
        job = await asyncio.to_thread(context.backends.jobs.get, job_id)
    if job is None:
        await check_room(context, principal)
        generation_request = body.to_request()
        work, pool = await context.platform.check(principal, generation_request)
        # A retry must generate the same images.
        seeds = list(generation_request.seeds)
        fixed = body.model_copy(update={"seed": seeds, "gpu": pool or None})
        job = await asyncio.to_thread(
            context.backends.jobs.add, principal, fixed.model_dump(), job_id, digest, work, pool
        )
        reach("job.accepted")
    elif job.asked_by.get("member_id", "") != principal.member_id:
        # This member may lack access to the assets.
        await context.platform.check(principal, body.to_request())
    if job.body_digest != digest:
        raise InvalidRequest(HEADER, "this key was used for another request; use a new key")
    if job.error is not None and (job.error["status"] >= 500 or job.error["status"] == 429):
        work, pool = await context.platform.check(principal, body.to_request())
        job = await asyncio.to_thread(context.backends.jobs.again, job.id, principal, work, pool)
        if job is None:
            raise AssetNotFound("the job of this key")
    context.new_job.set()
    note(job=shortened(job.id))
    return job


async def check_room(context: Context, principal: Principal) -> None:
    """Make room for a result. Raises QuotaExceeded if impossible."""
    if principal.plan.storage_bytes is not None:
        uploads = context.platform.library.uploads
        await asyncio.to_thread(uploads.room, principal)
        await asyncio.to_thread(
            uploads.make_room, principal.tenant_id, principal.plan.storage_bytes
        )


async def finished(context: Context, job: Job, timeout_s: float) -> Job:
    """Wait for a job.

    Raises:
        DeadlineExceeded: after ``timeout_s``; the job continues.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await context.job_watch.finished(job.id)
    except TimeoutError:
        raise DeadlineExceeded(
            f"not finished within {timeout_s:.0f} s; the job continues: retry with the same key"
        ) from None


async def answer_of(context: Context, job: Job) -> Response:
    """Return a finished job's response."""
    if job.error is not None:
        return JSONResponse(job.error["body"], job.error["status"])
    data = await asyncio.to_thread(read_bytes, context.backends.store, result_key(job.id))
    return Response(data, media_type="application/json")
