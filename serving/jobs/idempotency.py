"""Acceptance of jobs, once per idempotency key.

The tenant and key determine a job's id: the database decides which request is first, across
gateways. All get its response, request errors included; after a server error or refusal, the next
request restarts it. Keys live as long as results (AO_RESULTS_KEPT_S).
"""

from __future__ import annotations

import asyncio

from msgspec import structs

from assets.access import require
from assets.errors import AssetNotFound
from assets.failpoint import reach
from assets.principal import Principal
from assets.storage.signing import Signer
from serving.errors import InvalidRequest
from serving.generation.contract import GenerationRequest
from serving.generation.service import GenerationService
from serving.jobs.store import Job, JobStore
from serving.logs import note, shortened


class JobAcceptance:
    """Accepts the jobs of one gateway. ``accepted`` wakes its runner."""

    def __init__(
        self, jobs: JobStore, service: GenerationService, signer: Signer, accepted: asyncio.Event
    ) -> None:
        self._jobs = jobs
        self._service = service
        self._signer = signer
        self._accepted = accepted

    async def accept(
        self,
        principal: Principal,
        request: GenerationRequest,
        digest: str | None = None,
        key: str | None = None,
    ) -> Job:
        """Return the request's job, new or existing. ``digest``: of the body, with a ``key``.

        Raises:
            Forbidden: the role may not generate.
            AssetError, InvalidRequest: invalid; the key stays unused.
            InvalidRequest: the key of another request.
            Refused: too many unfinished jobs.
            BudgetExceeded, QuotaExceeded: no budget or storage left.
        """
        require(principal, "use")
        job_id = None if key is None else self._job_id(principal, digest, key)
        job = None if job_id is None else await asyncio.to_thread(self._jobs.get, job_id)
        if job is None:
            await make_room(self._service, principal)
            work, pool = await self._service.check(principal, request)
            stored = structs.replace(request, gpu=pool)
            job = await asyncio.to_thread(
                self._jobs.add, principal, stored, job_id, digest, work, pool
            )
            reach("job.accepted")
        elif job.asked_by.get("member_id", "") != principal.member_id:
            # This member may lack access to the assets.
            await self._service.check(principal, request)
        if job.body_digest != digest:
            raise InvalidRequest(
                "Idempotency-Key", "this key was used for another request; use a new key"
            )
        if job.error is not None and (job.error.may_pass or job.status == "cancelled"):
            work, pool = await self._service.check(principal, request)
            job = await asyncio.to_thread(self._jobs.again, job.id, principal, work, pool)
            if job is None:
                raise AssetNotFound("the job of this key")
        self._accepted.set()
        note(job=shortened(job.id))
        return job

    def _job_id(self, principal: Principal, digest: str | None, key: str) -> str:
        # Anonymous clients must not learn of each other's keys in their shared tenant.
        is_anonymous = principal.role == "anonymous"
        owner = (principal.queue_id, digest or "") if is_anonymous else (principal.tenant_id,)
        return "job_" + self._signer.derived("job", *owner, key)


async def make_room(service: GenerationService, principal: Principal) -> None:
    """Make room for a result. Raises QuotaExceeded if impossible."""
    if principal.plan.storage_bytes is not None:
        uploads = service.library.uploads
        await asyncio.to_thread(uploads.room, principal)
        await asyncio.to_thread(
            uploads.make_room, principal.tenant_id, principal.plan.storage_bytes
        )
