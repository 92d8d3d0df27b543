"""Jobs when gateways shut down or generations fail."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import cast

import pytest

from assets.errors import AssetNotFound, StoreError
from assets.principal import Principal
from serving.bootstrap.database import open_database
from serving.errors import Cancelled, DeadlineExceeded, NotFound, Refused, ReplicaLost
from serving.jobs.failed import JobError
from serving.jobs.notices import Notices
from serving.jobs.runner import (
    LONGEST_PUT_BACK_S,
    LONGEST_REFUSED_S,
    MAX_FAILURES,
    PUT_BACK_S,
    JobRunner,
    retry_after,
)
from serving.jobs.store import Job, JobStore
from serving.jobs.watch import JobWatcher
from serving.tenants.meter import Meter, Settlement
from tests.support.generation import REQUEST


async def test_a_gateway_puts_its_jobs_back_on_shutdown(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/j.db")
    jobs = JobStore(engine, Meter(engine))
    principal = Principal("t", "acme")
    job = jobs.add(principal, REQUEST)
    started = asyncio.Event()

    class Work:
        async def generate(self, job: Job) -> Settlement:
            started.set()
            await asyncio.Event().wait()
            raise AssertionError

    notices = Notices(engine)
    watch = JobWatcher(jobs, jobs.outbox, notices)
    runner = JobRunner(jobs, Work(), asyncio.Event(), watch, notices)
    running = asyncio.create_task(runner.run())
    async with asyncio.timeout(10):
        await started.wait()
    assert jobs.claim("another") is None
    running.cancel()
    await asyncio.wait([running])
    claimed = jobs.claim("another")
    assert claimed is not None
    assert claimed.id == job.id


class Counting:
    """A job store that counts what its watchers ask for."""

    def __init__(self, jobs: JobStore) -> None:
        self._jobs = jobs
        self.sizes: list[int] = []

    def ended(self, job_ids: Collection[str]) -> dict[str, Job | None]:
        self.sizes.append(len(job_ids))
        return self._jobs.ended(job_ids)


async def test_waiters_cost_what_ends_and_not_what_waits(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/j.db")
    jobs = JobStore(engine, Meter(engine))
    principal = Principal("t", "acme")
    counting = Counting(jobs)
    watch = JobWatcher(cast(JobStore, counting), jobs.outbox, Notices(engine))
    accepted = [jobs.add(principal, REQUEST) for _ in range(50)]
    waiting = [asyncio.create_task(watch.finished(job.id)) for job in accepted]
    waiting.append(asyncio.create_task(watch.finished(accepted[0].id)))
    unknown = asyncio.create_task(watch.finished("job_nowhere"))
    async with asyncio.timeout(10):
        with pytest.raises(AssetNotFound):
            await unknown
        for _ in accepted[:-1]:
            claimed = jobs.claim("w")
            assert claimed is not None
            assert jobs.fail(claimed.id, "w", JobError.of(NotFound("key", "k")))
        assert jobs.cancel(accepted[-1].id, JobError.of(Cancelled("c")))
        watch.look()
        ended = await asyncio.gather(*waiting)
    assert {job.status for job in ended} == {"failed", "cancelled"}
    assert ended[0].id == ended[-1].id
    assert max(counting.sizes) == 51
    assert len(counting.sizes) < 5
    assert watch._awaited == {}


async def test_a_watcher_asks_again_about_everything_from_time_to_time(tmp_path: Path) -> None:
    """Should the outbox have missed one."""
    engine = open_database(f"sqlite:///{tmp_path}/j.db")
    jobs = JobStore(engine, Meter(engine))
    now_s = [0.0]
    watch = JobWatcher(jobs, jobs.outbox, Notices(engine), lambda: now_s[0])
    job = jobs.add(Principal("t", "acme"), REQUEST)
    waiting = asyncio.create_task(watch.finished(job.id))
    while watch._new or not watch._awaited:
        await asyncio.sleep(0.01)
    assert jobs.cancel(job.id, JobError.of(Cancelled("c")))
    jobs.outbox.forget(-1.0)
    now_s[0] += 31.0
    async with asyncio.timeout(10):
        assert (await waiting).status == "cancelled"


def test_a_late_job_fails_after_two_starts() -> None:
    begun, waited = DeadlineExceeded("late", 1), DeadlineExceeded("late", 0)
    first = retry_after(begun, 0)
    assert first is not None
    assert first.failures == 1
    assert retry_after(begun, 1) is None
    assert retry_after(waited, 1) is not None


@pytest.mark.parametrize("error", [ReplicaLost("r"), StoreError("s")])
def test_transient_errors_are_retried_with_doubling_delays(error: Exception) -> None:
    pauses, failures = [], 0
    while (again := retry_after(error, failures)) is not None:
        assert again.failures == failures + 1
        failures = again.failures
        pauses.append(again.for_s)
    assert len(pauses) == MAX_FAILURES
    assert pauses[:3] == [PUT_BACK_S, 2 * PUT_BACK_S, 4 * PUT_BACK_S]
    assert max(pauses) == LONGEST_PUT_BACK_S
    assert 600 <= sum(pauses) <= 900


def test_a_refused_job_counts_no_failure() -> None:
    for retry_after_s, pause_s in ((0.1, PUT_BACK_S), (5.0, 5.0), (900.0, LONGEST_REFUSED_S)):
        again = retry_after(Refused(503, "full", retry_after_s), MAX_FAILURES)
        assert again is not None
        assert (again.for_s, again.failures) == (pause_s, MAX_FAILURES)


def test_an_error_of_the_job_itself_is_final() -> None:
    assert retry_after(AssetNotFound("a"), 0) is None
    assert retry_after(ValueError("a bug"), 0) is None
