"""A job's work, in OctoAI's format: its request, result and error."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from assets.failpoint import reach
from assets.storage.object_paths import result_key
from assets.storage.object_store import put_bytes
from serving.api.context import Context
from serving.api.dialects.octoai.generate import answer
from serving.api.errors import describe
from serving.bootstrap.backends import Backends
from serving.generation.service import GenerationService
from serving.jobs.runner import JobRunner
from serving.jobs.store import Job
from serving.tenants.meter import Settlement


class ApiJobWork:
    """A :class:`~serving.jobs.runner.JobWork` over the generation service."""

    def __init__(self, platform: GenerationService, backends: Backends) -> None:
        self._platform = platform
        self._backends = backends

    async def generate(self, job: Job) -> Settlement:
        principal = await asyncio.to_thread(
            self._backends.directory.keyring.principal_of_job, job.tenant_id, job.asked_by
        )
        generated = await self._platform.generate_charged(
            principal, job.request, job.charge_id, job.id
        )
        data = json.dumps(answer(generated)).encode()
        key = result_key(job.id)
        await asyncio.to_thread(put_bytes, self._backends.store, key, data)
        await asyncio.to_thread(self._backends.blobs.keep, key, job.tenant_id, len(data))
        reach("job.stored")
        return generated.spent

    def failed(self, job: Job, failure: Exception) -> dict[str, Any]:
        status, body, _ = describe(failure)
        return {"status": status, "body": {**body, "request_id": job.id}}


def job_runner(context: Context) -> JobRunner:
    """Return this gateway's background worker."""
    backends = context.backends
    work = ApiJobWork(context.platform, backends)
    return JobRunner(backends.jobs, work, context.new_job, context.job_watch)
