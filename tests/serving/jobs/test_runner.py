"""What becomes of a job when its gateway ends, or when it could not be drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from assets.errors import AssetNotFound, StoreError
from assets.principal import Principal
from assets.sql.blobs import SqlBlobRecords
from serving.api.context import Context
from serving.bootstrap.database import open_database
from serving.errors import DeadlineExceeded, Refused, ReplicaLost
from serving.jobs.runner import (
    LONGEST_PUT_BACK_S,
    LONGEST_REFUSED_S,
    MOST_FAILURES,
    PUT_BACK_S,
    JobRunner,
    later,
)
from serving.jobs.store import Job, Jobs
from serving.jobs.watch import JobWatch
from serving.tenants.meter import Meter


async def test_a_gateway_that_ends_gives_its_jobs_to_the_others_at_once(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/j.db")
    jobs = Jobs(engine, Meter(engine, SqlBlobRecords(engine)))
    who = Principal("t", "acme")
    job = jobs.add(who, {"prompt": "a star"})
    result = asyncio.Event()

    async def generate_charged(*_: Any) -> None:
        result.set()
        await asyncio.Event().wait()

    context = SimpleNamespace(
        backends=SimpleNamespace(
            jobs=jobs,
            directory=SimpleNamespace(keyring=SimpleNamespace(principal_of_job=lambda *_: who)),
        ),
        platform=SimpleNamespace(generate_charged=generate_charged),
        new_job=asyncio.Event(),
    )
    running = asyncio.create_task(JobRunner(cast(Context, context)).run())
    async with asyncio.timeout(10):
        await result.wait()
    assert jobs.claim("another") is None
    running.cancel()
    await asyncio.wait([running])
    claimed = jobs.claim("another")
    assert claimed is not None
    assert claimed.id == job.id


async def test_however_many_wait_the_database_is_asked_once_a_look(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/j.db")
    jobs = Jobs(engine, Meter(engine, SqlBlobRecords(engine)))
    asked: list[int] = []

    class Counting:
        def ended(self, job_ids: Collection[str]) -> dict[str, Job | None]:
            asked.append(len(job_ids))
            return jobs.ended(job_ids)

    who = Principal("t", "acme")
    watch = JobWatch(cast(Jobs, Counting()))
    accepted = [jobs.add(who, {}) for _ in range(50)]
    waiting = [asyncio.create_task(watch.finished(job.id)) for job in accepted]
    waiting.append(asyncio.create_task(watch.finished(accepted[0].id)))
    nowhere = asyncio.create_task(watch.finished("job_nowhere"))
    async with asyncio.timeout(10):
        with pytest.raises(AssetNotFound):
            await nowhere
        for _ in accepted:
            claimed = jobs.claim("w")
            assert claimed is not None
            assert jobs.fail(claimed.id, "w", {"status": 422, "body": {}})
        watch.look()
        ended = await asyncio.gather(*waiting)
    assert {job.status for job in ended} == {"failed"}
    assert ended[0].id == ended[-1].id
    assert max(asked) == 51
    assert len(asked) < 10
    assert watch._awaited == {}


def test_a_job_that_is_late_is_given_up_after_it_was_begun_twice() -> None:
    begun, waited = DeadlineExceeded("late", 1), DeadlineExceeded("late", 0)
    first = later(begun, 0)
    assert first is not None
    assert first.failures == 1
    assert later(begun, 1) is None
    assert later(waited, 1) is not None


@pytest.mark.parametrize("error", [ReplicaLost("r"), StoreError("s")])
def test_what_passes_is_tried_again_after_pauses_that_double(error: Exception) -> None:
    pauses, failures = [], 0
    while (again := later(error, failures)) is not None:
        assert again.failures == failures + 1
        failures = again.failures
        pauses.append(again.for_s)
    assert len(pauses) == MOST_FAILURES
    assert pauses[:3] == [PUT_BACK_S, 2 * PUT_BACK_S, 4 * PUT_BACK_S]
    assert max(pauses) == LONGEST_PUT_BACK_S
    assert 600 <= sum(pauses) <= 900


def test_one_that_there_was_no_room_for_has_not_been_tried() -> None:
    for retry_after_s, pause_s in ((0.1, PUT_BACK_S), (5.0, 5.0), (900.0, LONGEST_REFUSED_S)):
        again = later(Refused(503, "full", retry_after_s), MOST_FAILURES)
        assert again is not None
        assert (again.for_s, again.failures) == (pause_s, MOST_FAILURES)


def test_what_is_wrong_with_the_job_is_its_end() -> None:
    assert later(AssetNotFound("a"), 0) is None
    assert later(ValueError("a bug"), 0) is None
