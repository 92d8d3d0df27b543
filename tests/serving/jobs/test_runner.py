"""Jobs when gateways shut down or generations fail."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import pytest

from assets.errors import AssetNotFound, StoreError
from assets.principal import Principal
from assets.sql.blobs import SqlBlobRecords
from serving.bootstrap.database import open_database
from serving.errors import DeadlineExceeded, Refused, ReplicaLost
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
    jobs = JobStore(engine, Meter(engine, SqlBlobRecords(engine)))
    principal = Principal("t", "acme")
    job = jobs.add(principal, REQUEST)
    started = asyncio.Event()

    class Work:
        async def generate(self, job: Job) -> Settlement:
            started.set()
            await asyncio.Event().wait()
            raise AssertionError

        def failed(self, job: Job, failure: Exception) -> dict[str, Any]:
            raise AssertionError

    runner = JobRunner(jobs, Work(), asyncio.Event(), JobWatcher(jobs))
    running = asyncio.create_task(runner.run())
    async with asyncio.timeout(10):
        await started.wait()
    assert jobs.claim("another") is None
    running.cancel()
    await asyncio.wait([running])
    claimed = jobs.claim("another")
    assert claimed is not None
    assert claimed.id == job.id


async def test_waiters_share_one_database_query(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/j.db")
    jobs = JobStore(engine, Meter(engine, SqlBlobRecords(engine)))
    query_sizes: list[int] = []

    class Counting:
        def ended(self, job_ids: Collection[str]) -> dict[str, Job | None]:
            query_sizes.append(len(job_ids))
            return jobs.ended(job_ids)

    principal = Principal("t", "acme")
    watch = JobWatcher(cast(JobStore, Counting()))
    accepted = [jobs.add(principal, REQUEST) for _ in range(50)]
    waiting = [asyncio.create_task(watch.finished(job.id)) for job in accepted]
    waiting.append(asyncio.create_task(watch.finished(accepted[0].id)))
    unknown = asyncio.create_task(watch.finished("job_nowhere"))
    async with asyncio.timeout(10):
        with pytest.raises(AssetNotFound):
            await unknown
        for _ in accepted:
            claimed = jobs.claim("w")
            assert claimed is not None
            assert jobs.fail(claimed.id, "w", {"status": 422, "body": {}})
        watch.look()
        ended = await asyncio.gather(*waiting)
    assert {job.status for job in ended} == {"failed"}
    assert ended[0].id == ended[-1].id
    assert max(query_sizes) == 51
    assert len(query_sizes) < 10
    assert watch._awaited == {}


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
