"""The job store: claims, retries, charges, expiry."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assets.plan import Plan
from assets.principal import Principal
from assets.sql.clock import clock_of
from serving.bootstrap.database import open_database
from serving.errors import Refused, ReplicaLost
from serving.jobs.failed import JobError
from serving.jobs.store import CLAIM_S, KEPT_S, Job, JobStore
from serving.tenants.meter import Charge, Meter, Settlement
from tests.support.generation import REQUEST

ACME = Principal("t", "acme")
LOST = JobError.of(ReplicaLost("gone"))


def jobs_of(url: str, now: Callable[[], float] = time.time) -> JobStore:
    engine = open_database(url)
    return JobStore(engine, Meter(engine, now), now)


def spent(job: Job) -> Settlement:
    return Settlement(Charge(job.id, ACME, 1.0), 1.0, 1)


def test_a_failed_job_is_retried_on_request(tmp_path: Path) -> None:
    now = [1000.0]
    jobs = jobs_of(f"sqlite:///{tmp_path}/j.db", lambda: now[0])
    job = jobs.add(ACME, REQUEST, "job_x", "digest")
    assert jobs.claim("w") is not None
    assert jobs.fail(job.id, "w", LOST)
    now[0] += KEPT_S + 1
    assert jobs.expired() == [job.id]
    retried = jobs.again(job.id, ACME, 1.0)
    assert retried is not None
    assert (retried.status, retried.error) == ("pending", None)
    jobs.forget(job.id)  # by a sweep that saw it expired before the retry; it keeps the job
    assert jobs.get(job.id) is not None
    assert jobs.claim("w") is not None


def test_an_expired_idempotency_key_is_charged_again(tmp_path: Path) -> None:
    now = [1000.0]
    jobs = jobs_of(f"sqlite:///{tmp_path}/j.db", lambda: now[0])
    for _ in range(2):
        job = jobs.add(ACME, REQUEST, "job_key", "digest")
        assert jobs.claim("w") is not None
        assert jobs.finish(job.id, "w", Settlement(Charge(job.charge_id, ACME, 1.0), 1.0, 1))
        now[0] += KEPT_S + 1
        jobs.forget(job.id)
    assert jobs._meter.ledger.totals(ACME.tenant_id)["pictures"] == 2


def test_concurrent_retries_reserve_the_budget_once(tmp_path: Path) -> None:
    principal = replace(ACME, plan=Plan("p", gpu_s_per_month=100.0))
    jobs = jobs_of(f"sqlite:///{tmp_path}/j.db")
    jobs._meter.settle(Settlement(Charge("before", principal, 1.0), 1.0, 1))
    job = jobs.add(principal, REQUEST, "job_key", "digest", work=5.0)
    assert jobs.claim("w") is not None
    assert jobs.fail(job.id, "w", LOST)
    for _ in range(2):
        retried = jobs.again(job.id, principal, 5.0)
    assert retried is not None
    assert jobs._meter.ledger.budget("t").reserved_gpu_s == 5.0
    assert jobs.claim("w") is not None
    assert jobs.finish(job.id, "w", Settlement(Charge(retried.charge_id, principal, 5.0), 5.0, 1))
    assert jobs.again(job.id, principal, 5.0) is not None
    assert jobs._meter.ledger.budget("t").reserved_gpu_s == 0.0
    jobs._meter.check_integrity()


def test_a_job_is_claimed_by_one_worker_and_finished_once(tmp_path: Path) -> None:
    now = [1000.0]
    jobs = jobs_of(f"sqlite:///{tmp_path}/j.db", lambda: now[0])
    job = jobs.add(ACME, REQUEST)
    job_id = job.id
    claimed = jobs.claim("w1")
    assert claimed is not None
    assert claimed.request == REQUEST
    assert jobs.claim("w2") is None
    now[0] += CLAIM_S - 1
    assert jobs.renew(job_id, "w1")
    now[0] += CLAIM_S - 1
    assert jobs.claim("w2") is None
    now[0] += 2
    assert jobs.claim("w2") is not None  # w1's claim expired
    assert not jobs.renew(job_id, "w1")
    assert not jobs.finish(job_id, "w1", spent(job))
    assert jobs.finish(job_id, "w2", spent(job))
    assert not jobs.finish(job_id, "w2", spent(job))
    done = jobs.get(job_id)
    assert done is not None
    assert done.status == "completed"
    now[0] += 25 * 3600
    assert jobs.expired() == [job_id]
    jobs.forget(job_id)
    assert jobs.expired() == []
    assert jobs.get(job_id) is None


def test_a_tenants_backlog_of_jobs_does_not_delay_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(f"sqlite:///{tmp_path}/j.db")
    heavy, light = Principal("many", "many"), Principal("one", "one")
    backlog = [jobs.add(heavy, REQUEST).id for _ in range(5)]
    light_id = jobs.add(light, REQUEST).id
    first, second = jobs.claim("w"), jobs.claim("w")
    assert first is not None
    assert second is not None
    assert (first.id, second.id) == (backlog[0], light_id)
    assert jobs.put_back(light_id, "w", 0.0, 1)
    returned = jobs.get(light_id)
    assert returned is not None
    assert (returned.status, returned.failures) == ("pending", 1)
    monkeypatch.setattr("serving.jobs.store.MAX_UNFINISHED", 5)
    with pytest.raises(Refused):
        jobs.add(heavy, REQUEST)
    jobs.add(light, REQUEST)


def test_results_are_kept_as_long_as_configured(tmp_path: Path) -> None:
    now = [1000.0]
    engine = open_database(f"sqlite:///{tmp_path}/j.db")
    clock = lambda: now[0]  # noqa: E731
    jobs = JobStore(engine, Meter(engine, clock), clock, kept_s=60.0)
    job = jobs.add(ACME, REQUEST, "job_x")
    assert jobs.claim("w") is not None
    assert jobs.finish(job.id, "w", spent(job))
    now[0] += 59
    assert jobs.expired() == []
    now[0] += 2
    assert jobs.expired() == [job.id]


def test_clock_skew_does_not_take_over_claims(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All machines share PostgreSQL's clock; SQLite has one machine."""

    def open_jobs() -> JobStore:
        clock = clock_of(database)
        meter = Meter(database, clock)
        return JobStore(database, meter, clock, kept_s=600.0)

    def claimed_by(jobs: JobStore, worker: str) -> set[str]:
        """Claim everything: other tests' jobs are there, too."""
        claims = iter(lambda: jobs.claim(worker), None)
        return {job.id for job in claims if job is not None}

    exact = open_jobs()
    job = exact.add(ACME, REQUEST, f"job_{secrets.token_hex(8)}")
    assert job.id in claimed_by(exact, "right")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 900.0)
    ahead = open_jobs()
    stolen = claimed_by(ahead, "ahead")
    if database.dialect.name == "postgresql":
        assert job.id not in stolen
        assert not ahead.is_old(job)
        assert exact.finish(job.id, "right", spent(job))
    else:
        assert job.id in stolen
