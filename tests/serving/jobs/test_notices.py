"""Notices between gateways over PostgreSQL: woken at once, and again after a lost connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from assets.principal import Principal
from serving.bootstrap.database import open_database
from serving.errors import Cancelled
from serving.jobs import notices as module
from serving.jobs import watch as watch_module
from serving.jobs.failed import JobError
from serving.jobs.notices import Notices
from serving.jobs.store import JobStore
from serving.jobs.watch import JobWatcher
from serving.tenants.meter import Meter
from tests.support.generation import REQUEST

ACME = Principal("t", "acme")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(engine: Engine) -> AsyncIterator[tuple[Notices, asyncio.Event, JobWatcher]]:
    notices, accepted = Notices(engine), asyncio.Event()
    jobs = JobStore(engine, Meter(engine))
    watch = JobWatcher(jobs, jobs.outbox, notices)
    notices.start({"accepted": accepted.set, "ended": watch.look})
    try:
        await until(lambda: notices.is_listening)
        await until(accepted.is_set)  # in case some were sent before
        accepted.clear()
        yield notices, accepted, watch
    finally:
        await notices.close()


@pytest.fixture
def far_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks without a notice."""
    monkeypatch.setattr(watch_module, "_SLOW_POLL_S", 1000.0)
    monkeypatch.setattr(module, "_RETRY_S", 0.1)


async def test_another_gateways_jobs_wake_this_one(postgres_url: str, far_between: None) -> None:
    here, there = open_database(postgres_url), open_database(postgres_url)
    others = JobStore(there, Meter(there))
    async with listening(here) as (_, accepted, watch), asyncio.timeout(20):
        job = others.add(ACME, REQUEST)
        await accepted.wait()
        ended = asyncio.create_task(watch.finished(job.id))
        await until(lambda: not watch._new and not ended.done())
        assert others.cancel(job.id, JobError.of(Cancelled("c")))
        assert (await ended).status == "cancelled"
    here.dispose()
    there.dispose()


async def test_a_lost_connection_is_replaced_and_everything_looked_at(
    postgres_url: str, far_between: None
) -> None:
    engine = open_database(postgres_url)
    async with listening(engine) as (notices, accepted, _), asyncio.timeout(20):
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE query LIKE 'LISTEN%' AND pid <> pg_backend_pid()"
                )
            )
        await accepted.wait()
        await until(lambda: notices.is_listening)
    engine.dispose()


async def test_sqlite_has_none(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/j.db")
    notices = Notices(engine)
    notices.start({})
    assert not notices.is_listening
    await notices.close()
    engine.dispose()
