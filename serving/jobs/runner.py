"""A gateway's background worker: runs its own jobs and those of dead gateways."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.exc import OperationalError

from assets.errors import StoreError
from assets.failpoint import reach
from assets.sql.busy import persisted
from orchestrator.errors import TierError
from serving.errors import DeadlineExceeded, OutOfMemory, PolicyUnavailable, Refused, ReplicaLost
from serving.jobs.failed import JobError
from serving.jobs.notices import Notices
from serving.jobs.store import CLAIM_S, Job, JobStore
from serving.jobs.watch import JobWatcher
from serving.logs import log_fields, shortened
from serving.tenants.meter import Settlement

log = logging.getLogger(__name__)

#: Without and with notices. Jobs that were put back come due without one.
POLL_S, SLOW_POLL_S = 0.25, 1.0
#: Above the dispatcher's limit per tenant: one tenant's jobs must not block the others.
MAX_AT_ONCE = 128
#: Retried MAX_FAILURES times, with delays from PUT_BACK_S to LONGEST_PUT_BACK_S, some ten minutes
#: in all.
TRANSIENT = (
    ReplicaLost, DeadlineExceeded, OutOfMemory, PolicyUnavailable, TierError, StoreError,
    OperationalError,
)  # fmt: skip
MAX_FAILURES = 15
PUT_BACK_S, LONGEST_PUT_BACK_S = 2.0, 60.0
#: Refused jobs count no failure: they are retried while results are kept.
LONGEST_REFUSED_S = 15.0


class JobWork(Protocol):
    """What a job does."""

    async def generate(self, job: Job) -> Settlement:
        """Run the job, store its result, return its cost. May raise any error."""


class JobRunner:
    """Claims and runs jobs; ``accepted`` is set for a job of this gateway."""

    def __init__(
        self,
        jobs: JobStore,
        work: JobWork,
        accepted: asyncio.Event,
        watch: JobWatcher,
        notices: Notices,
    ) -> None:
        self._jobs = jobs
        self._work = work
        self._accepted = accepted
        self._watch = watch
        self._notices = notices
        self._worker = secrets.token_hex(8)
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run until cancelled; then put unfinished jobs back."""
        try:
            while True:
                job = None
                if len(self._running) < MAX_AT_ONCE:
                    job = await self._claim()
                if job is None:
                    await self._new_job()
                    continue
                task = asyncio.create_task(self._run(job))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _new_job(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(SLOW_POLL_S if self._notices.is_listening else POLL_S):
                await self._accepted.wait()
        self._accepted.clear()

    async def _claim(self) -> Job | None:
        try:
            return await asyncio.to_thread(self._jobs.claim, self._worker)
        except Exception:
            log.exception("could not claim jobs; retrying")
            return None

    async def _run(self, job: Job) -> None:
        with log_fields(job=shortened(job.id), tenant=job.tenant_id):
            await self._finish(job)

    async def _finish(self, job: Job) -> None:
        result = asyncio.create_task(self._generate(job))
        renewing = asyncio.create_task(self._renew(job))
        try:
            await asyncio.wait({result, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done() and not await self._is_cancelled(job):
                return
            outcome = await result
            if isinstance(outcome, Retry):
                await persisted(
                    self._jobs.put_back, job.id, self._worker, outcome.for_s, outcome.failures
                )
            elif isinstance(outcome, Settlement):
                await persisted(self._jobs.finish, job.id, self._worker, outcome)
                reach("job.finished")
            else:
                await persisted(self._jobs.fail, job.id, self._worker, outcome)
            self._watch.look()
        except asyncio.CancelledError:  # release the claim
            put_back = self._jobs.put_back
            await asyncio.to_thread(put_back, job.id, self._worker, 0.0, job.failures)
            raise
        finally:
            for task in (result, renewing):
                task.cancel()
            await asyncio.gather(result, renewing, return_exceptions=True)

    async def _generate(self, job: Job) -> Settlement | JobError | Retry:
        try:
            return await self._work.generate(job)
        except Exception as failure:
            is_old = await asyncio.to_thread(self._jobs.is_old, job)
            retry = None if is_old else retry_after(failure, job.failures)
            outcome = "failed" if retry is None else f"retrying in {retry.for_s:.0f} s"
            log.info("job not completed, %s: %s", outcome, type(failure).__name__)
            return retry or JobError.of(failure)

    async def _is_cancelled(self, job: Job) -> bool:
        """A cancelled job's engine ends by itself; what it used is charged."""
        now = await asyncio.to_thread(self._jobs.get, job.id)
        return now is not None and now.status == "cancelled"

    async def _renew(self, job: Job) -> None:
        while True:
            await asyncio.sleep(CLAIM_S / 3)
            if not await persisted(self._jobs.renew, job.id, self._worker):
                return


@dataclass(frozen=True, slots=True)
class Retry:
    for_s: float
    failures: int


def retry_after(failure: Exception, failures: int) -> Retry | None:
    """Return when to retry after ``failures`` earlier failures; None: it has failed."""
    if isinstance(failure, Refused):
        return Retry(min(max(PUT_BACK_S, failure.retry_after_s), LONGEST_REFUSED_S), failures)
    if isinstance(failure, DeadlineExceeded) and failure.attempts and failures:
        return None  # a replica has started it twice
    if isinstance(failure, TRANSIENT) and failures < MAX_FAILURES:
        return Retry(min(PUT_BACK_S * 2**failures, LONGEST_PUT_BACK_S), failures + 1)
    return None
