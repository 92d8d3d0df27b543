"""Waiting for jobs that any gateway may finish: one question about all of them."""

from __future__ import annotations

import asyncio

from assets.errors import AssetNotFound
from serving.jobs.store import Job, Jobs

_LOOK_S = 0.1


class JobWatch:
    """Of one gateway, on its event loop. However many wait, the database is asked once in a
    while: else those who wait would take from those who draw what they are waiting for."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._awaited: dict[str, asyncio.Future[Job]] = {}
        self._news = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def finished(self, job_id: str) -> Job:
        """The job once it is done, as every job is: what cannot be drawn fails in the end.

        Raises:
            AssetNotFound: there is no such job. Whatever the database raises.
        """
        awaited = self._awaited.get(job_id)
        if awaited is None:
            awaited = self._awaited[job_id] = asyncio.get_running_loop().create_future()
            awaited.add_done_callback(_heard)
        self._news.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(awaited)

    def look(self) -> None:
        """Something has just been finished here."""
        self._news.set()

    async def _look(self) -> None:
        while self._awaited:
            self._news.clear()
            asked = list(self._awaited)
            try:
                ended = await asyncio.to_thread(self._jobs.ended, asked)
            except Exception as error:  # each may ask again
                for job_id in asked:
                    self._awaited.pop(job_id).set_exception(error)
                continue
            for job_id, job in ended.items():
                awaited = self._awaited.pop(job_id)
                if job is None:
                    awaited.set_exception(AssetNotFound(job_id))
                else:
                    awaited.set_result(job)
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._news.wait()
            except TimeoutError:
                continue


def _heard(awaited: asyncio.Future[Job]) -> None:
    """Who waited may have gone away."""
    if not awaited.cancelled():
        awaited.exception()
