"""Waits for jobs that any gateway may finish."""

from __future__ import annotations

import asyncio

from assets.errors import AssetNotFound
from serving.jobs.store import Job, JobStore

_POLL_S = 0.1


class JobWatcher:
    """The waiters of one event loop. One query polls for all, to spare the database."""

    def __init__(self, jobs: JobStore) -> None:
        self._jobs = jobs
        self._awaited: dict[str, asyncio.Future[Job]] = {}
        self._poll_now = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None

    async def finished(self, job_id: str) -> Job:
        """Wait until the job ended; database errors propagate.

        Raises:
            AssetNotFound: no such job.
        """
        awaited = self._awaited.get(job_id)
        if awaited is None:
            awaited = self._awaited[job_id] = asyncio.get_running_loop().create_future()
            awaited.add_done_callback(_mark_retrieved)
        self._poll_now.set()
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll())
        return await asyncio.shield(awaited)

    def look(self) -> None:
        """Poll now: a job ended in this gateway."""
        self._poll_now.set()

    async def _poll(self) -> None:
        while self._awaited:
            self._poll_now.clear()
            job_ids = list(self._awaited)
            try:
                ended = await asyncio.to_thread(self._jobs.ended, job_ids)
            except Exception as error:  # every waiter gets it and may retry
                for job_id in job_ids:
                    self._awaited.pop(job_id).set_exception(error)
                continue
            for job_id, job in ended.items():
                awaited = self._awaited.pop(job_id)
                if job is None:
                    awaited.set_exception(AssetNotFound(job_id))
                else:
                    awaited.set_result(job)
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._poll_now.wait()
            except TimeoutError:
                continue


def _mark_retrieved(awaited: asyncio.Future[Job]) -> None:
    """Retrieve the error, or asyncio logs it."""
    if not awaited.cancelled():
        awaited.exception()
