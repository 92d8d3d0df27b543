"""The work of a job: generate, and store the result."""

from __future__ import annotations

import asyncio

from assets.failpoint import reach
from serving.generation.service import GenerationService
from serving.jobs.results import JobResults
from serving.jobs.store import Job
from serving.tenants.keyring import Keyring
from serving.tenants.meter import Settlement


class GenerationWork:
    """A :class:`~serving.jobs.runner.JobWork` over the generation service."""

    def __init__(self, service: GenerationService, keyring: Keyring, results: JobResults) -> None:
        self._service = service
        self._keyring = keyring
        self._results = results

    async def generate(self, job: Job) -> Settlement:
        principal = await asyncio.to_thread(
            self._keyring.principal_of_job, job.tenant_id, job.asked_by
        )
        generated = await self._service.generate_charged(
            principal, job.request, job.charge_id, job.id
        )
        encoding = job.request.params.encoding
        await asyncio.to_thread(self._results.save, job.id, job.tenant_id, generated, encoding)
        reach("job.stored")
        return generated.spent
