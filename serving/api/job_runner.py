"""Works on jobs in the background of a gateway: this one's and those a dead one left."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from contextlib import suppress

from assets.keys import result_key
from assets.principal import Principal
from assets.store import put_bytes
from serving.api.context import Context
from serving.api.errors import describe
from serving.api.wire_generate import GenerateRequest, answer
from serving.jobs.jobs import CLAIM_S, Job

log = logging.getLogger(__name__)

POLL_S = 0.25
MAX_AT_ONCE = 16
_SWEEP_S = 30.0
#: An upload whose ingest has not ended by then is ingested again.
STALE_UPLOAD_S = 300.0


class JobRunner:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._worker = secrets.token_hex(8)
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled. A claim that is cut off runs out and another gateway takes it."""
        try:
            while True:
                job = None
                if len(self._running) < MAX_AT_ONCE:
                    job = await self._claim()
                if job is None:
                    await asyncio.sleep(POLL_S)
                    continue
                task = asyncio.create_task(self._work(job))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _claim(self) -> Job | None:
        try:
            return await asyncio.to_thread(self._context.jobs.claim, self._worker)
        except Exception:
            log.exception("could not look for jobs; trying again")
            return None

    async def _work(self, job: Job) -> None:
        renewing = asyncio.create_task(self._renew(job))
        try:
            principal = Principal(job.tenant_id, job.tenant_name, job.weight)
            order = GenerateRequest.model_validate(job.request).order()
            generated = await self._context.platform.generate(principal, order)
            data = json.dumps(answer(generated)).encode()
            await asyncio.to_thread(put_bytes, self._context.store, result_key(job.id), data)
            error = None
        except Exception as failure:
            status, body, _ = describe(failure)
            error = {"status": status, "body": {**body, "request_id": job.id}}
        finally:
            renewing.cancel()
            with suppress(asyncio.CancelledError):
                await renewing
        await asyncio.to_thread(self._context.jobs.finish, job.id, self._worker, error)

    async def _renew(self, job: Job) -> None:
        while True:
            await asyncio.sleep(CLAIM_S / 3)
            await asyncio.to_thread(self._context.jobs.renew, job.id, self._worker)


async def sweep(context: Context) -> None:
    """Until cancelled: expire old jobs, and restart ingests that died half way."""
    while True:
        try:
            for job_id in await asyncio.to_thread(context.jobs.expire):
                await asyncio.to_thread(context.store.delete, result_key(job_id))
            library = context.platform.library
            for asset in await asyncio.to_thread(library.stale_uploads, STALE_UPLOAD_S):
                await context.ingest.start(asset.id)
        except Exception:
            log.exception("the sweep failed; it will run again")
        await asyncio.sleep(_SWEEP_S)
