"""``Idempotency-Key``: however often a request arrives, it is drawn once.

The request becomes a job whose id follows from the tenant and the key, so the database
decides which of many arrivals is the first, on whichever gateway. All of them wait for the
one job and get its answer, an error of the request's own too; a failure of ours is tried again
when the key comes again. A key that comes back with another body is refused.
Keys are remembered as long as results are (AO_RESULTS_KEPT_S, a day).
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
_LONGEST = 255


def key_of(request: Request) -> str | None:
    """Raises InvalidRequest when the header is there and no key."""
    key = request.headers.get(HEADER)
    if key is not None and not (0 < len(key) <= _LONGEST and key.isascii() and key.isprintable()):
        raise InvalidRequest(HEADER, f"a key is 1 to {_LONGEST} printable ASCII characters")
    return key


#: Fields that do not change what is drawn.
_NO_CONTENT = {"priority", "gpu"}


async def accept(context: Context, who: Principal, body: GenerateRequest, key: str | None) -> Job:
    """The job of this request: a new one, or the one that the key has already.

    Raises:
        Forbidden: the key's role does not generate.
        AssetError, InvalidRequest: the request cannot be drawn; the key is not used up.
        InvalidRequest: the key was used for another request.
        Refused: too many jobs of this tenant are unfinished.
        BudgetExceeded, QuotaExceeded: the month's budget, or the storage, has no room for it.
    """
    require(who, "use")
    job = job_id = digest = None
    if key is not None:
        digest = hashlib.sha256(body.model_dump_json(exclude=_NO_CONTENT).encode()).hexdigest()
        # Strangers share a tenant: another's key must tell them nothing.
        owner = (who.queue_id, digest) if who.role == "anonymous" else (who.tenant_id,)
        job_id = "job_" + context.signer.derived("job", *owner, key)
        job = await asyncio.to_thread(context.backends.jobs.get, job_id)
    if job is None:
        await check_room(context, who)
        order = body.order()
        work, pool = await context.platform.check(who, order)
        # The seeds are fixed now, so that a second attempt draws the same pictures.
        fixed = body.model_copy(update={"seed": list(order.seeds), "gpu": pool or None})
        job = await asyncio.to_thread(
            context.backends.jobs.add, who, fixed.model_dump(), job_id, digest, work, pool
        )
        reach("job.accepted")
    elif job.asked_by.get("member_id", "") != who.member_id:
        await context.platform.check(who, body.order())  # another member may not see as much
    if job.body_digest != digest:
        raise InvalidRequest(HEADER, "this key was used for another request; take a new one")
    if job.error is not None and (job.error["status"] >= 500 or job.error["status"] == 429):
        work, pool = await context.platform.check(who, body.order())
        job = await asyncio.to_thread(context.backends.jobs.again, job.id, who, work, pool)
        if job is None:
            raise AssetNotFound("the job of this key")
    context.new_job.set()
    note(job=shortened(job.id))
    return job


async def check_room(context: Context, who: Principal) -> None:
    """Raises QuotaExceeded: what is generated is stored, and the tenant's plan has no room."""
    if who.plan.storage_bytes is not None:
        uploads = context.platform.library.uploads
        await asyncio.to_thread(uploads.room, who)
        await asyncio.to_thread(uploads.make_room, who.tenant_id, who.plan.storage_bytes)


async def finished(context: Context, job: Job, timeout_s: float) -> Job:
    """The job once it is done.

    Raises:
        DeadlineExceeded: it is not; it goes on, and the same key asks for it again.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await context.job_watch.finished(job.id)
    except TimeoutError:
        raise DeadlineExceeded(
            f"not done within {timeout_s:.0f} s; it goes on: send it again with the same key"
        ) from None


async def answer_of(context: Context, job: Job) -> Response:
    """What a finished job answers."""
    if job.error is not None:
        return JSONResponse(job.error["body"], job.error["status"])
    data = await asyncio.to_thread(read_bytes, context.backends.store, result_key(job.id))
    return Response(data, media_type="application/json")
