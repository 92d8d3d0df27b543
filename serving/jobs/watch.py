"""Waits for jobs that any gateway may finish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from assets.errors import AssetNotFound
from serving.jobs.notices import Notices
from serving.jobs.outbox import Outbox
from serving.jobs.store import Job, JobStore

#: Without and with notices.
_POLL_S, _SLOW_POLL_S = 0.1, 2.0
#: Everything awaited is looked up this often, whatever the outbox says.
_CHECK_S = 30.0


class JobWatcher:
    """The waiters of one event loop. It reads the outbox for all of them, so its cost depends on
    the jobs that end and not on those that wait."""

    def __init__(
        self,
        jobs: JobStore,
        outbox: Outbox,
        notices: Notices,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = jobs
        self._outbox = outbox
        self._notices = notices
        self._clock = clock
        self._awaited: dict[str, asyncio.Future[Job]] = {}
        #: Not looked up yet.
        self._new: set[str] = set()
        self._poll_now = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None

    def future(self, job_id: str) -> asyncio.Future[Job]:
        """Done when the job has ended; shared. Its errors: AssetNotFound, or the database's."""
        awaited = self._awaited.get(job_id)
        if awaited is None:
            awaited = self._awaited[job_id] = asyncio.get_running_loop().create_future()
            awaited.add_done_callback(_mark_retrieved)
            self._new.add(job_id)
            self._poll_now.set()
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll())
        return awaited

    async def finished(self, job_id: str) -> Job:
        """Wait until the job ended; database errors propagate.

        Raises:
            AssetNotFound: no such job.
        """
        return await asyncio.shield(self.future(job_id))

    def look(self) -> None:
        """Look now: a job ended."""
        self._poll_now.set()

    async def _poll(self) -> None:
        number: int | None = None
        checked_s = self._clock()
        while self._awaited:
            self._poll_now.clear()
            try:
                if number is None:
                    number = await asyncio.to_thread(self._outbox.last)
                if self._clock() >= checked_s + _CHECK_S:
                    checked_s = self._clock()
                    self._new.update(self._awaited)
                rows = await asyncio.to_thread(self._outbox.after, number)
                if rows:
                    number = max(number, rows[-1].number)
                ended = {row.job_id for row in rows if row.job_id in self._awaited}
                due, self._new = ended | self._new, set()
                if due:
                    self._resolve(await asyncio.to_thread(self._jobs.ended, due))
            except Exception as error:  # every waiter gets it and may retry
                number = None
                self._new.clear()
                awaited, self._awaited = self._awaited, {}
                for future in awaited.values():
                    future.set_exception(error)
                continue
            try:
                async with asyncio.timeout(_SLOW_POLL_S if self._notices.is_listening else _POLL_S):
                    await self._poll_now.wait()
            except TimeoutError:
                continue

    def _resolve(self, ended: dict[str, Job | None]) -> None:
        for job_id, job in ended.items():
            awaited = self._awaited.pop(job_id, None)
            if awaited is None:
                continue
            if job is None:
                awaited.set_exception(AssetNotFound(job_id))
            else:
                awaited.set_result(job)


def _mark_retrieved(awaited: asyncio.Future[Job]) -> None:
    """Retrieve the error, or asyncio logs it."""
    if not awaited.cancelled():
        awaited.exception()
