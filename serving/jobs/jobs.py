"""Jobs of one gateway: accepted, run, awaited, cancelled, expired."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy import Engine

from assets.access import require
from assets.errors import AssetNotFound, Forbidden
from assets.principal import Principal
from assets.storage.signing import Signer
from serving.errors import Cancelled
from serving.generation.backend import Generator
from serving.generation.service import GenerationService
from serving.generation.submission import Cancellation
from serving.jobs.failed import JobError
from serving.jobs.idempotency import JobAcceptance
from serving.jobs.notices import Notices
from serving.jobs.results import JobResults
from serving.jobs.runner import JobRunner
from serving.jobs.store import Job, JobStore
from serving.jobs.watch import JobWatcher
from serving.jobs.work import GenerationWork
from serving.logs import shortened
from serving.tenants.keyring import Keyring

log = logging.getLogger(__name__)

#: Longer than any gateway stops reading the outbox.
_OUTBOX_KEPT_S = 24 * 3600.0


class Jobs:
    def __init__(
        self,
        store: JobStore,
        results: JobResults,
        service: GenerationService,
        generator: Generator,
        keyring: Keyring,
        signer: Signer,
        engine: Engine,
    ) -> None:
        self.store = store
        self.results = results
        self._generator = generator
        self._notices = Notices(engine)
        accepted = asyncio.Event()
        self.watch = JobWatcher(store, store.outbox, self._notices)
        self.acceptance = JobAcceptance(store, service, signer, accepted)
        self._accepted = accepted
        work = GenerationWork(service, keyring, results)
        self._runner = JobRunner(store, work, accepted, self.watch, self._notices)

    async def run(self) -> None:
        """Run jobs until cancelled; then put unfinished ones back."""
        self._notices.start({"accepted": self._accepted.set, "ended": self.watch.look})
        try:
            await self._runner.run()
        finally:
            await self._notices.close()

    async def get(self, job_id: str) -> Job:
        """Raises AssetNotFound."""
        job = await asyncio.to_thread(self.store.get, job_id)
        if job is None:
            raise AssetNotFound(job_id)
        return job

    async def cancel(self, principal: Principal, job_id: str) -> Job:
        """Cancel a job, unless it has ended; return it as it is then. What its engine has used is
        charged.

        Raises:
            AssetNotFound: not one of the organisation.
            Forbidden: another member's, or the role may not generate.
        """
        require(principal, "use")
        job = await self.get(job_id)
        if job.tenant_id != principal.tenant_id or principal.role == "anonymous":
            raise AssetNotFound(job_id)
        own = asked_by(principal)
        if own is not None and job.asked_by.get(own[0]) != own[1]:
            raise Forbidden(principal.role, "cancel jobs of other members")
        error = JobError.of(Cancelled("the job was cancelled"))
        cancelled = await asyncio.to_thread(self.store.cancel, job_id, error)
        if cancelled is None:
            return await self.get(job_id)
        self.watch.look()
        await self._generator.cancel(cancelled.pool, Cancellation(job_id, cancelled.charge_id))
        return cancelled

    async def expire(self) -> None:
        """Delete expired jobs with their results."""
        for job_id in await asyncio.to_thread(self.store.expired):
            try:
                await asyncio.to_thread(self.results.delete, job_id)
                await asyncio.to_thread(self.store.forget, job_id)
            except Exception:  # must not keep the others
                log.exception("job %s is not deleted; retrying", shortened(job_id))
        await asyncio.to_thread(self.store.outbox.forget, _OUTBOX_KEPT_S)


def asked_by(principal: Principal) -> tuple[str, str] | None:
    """Whose jobs a principal manages: a member's own, or its key's; None: the organisation's."""
    if principal.role == "owner":
        return None
    if principal.member_id:
        return "member_id", principal.member_id
    return "key_id", principal.key_id
