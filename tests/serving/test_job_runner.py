"""What becomes of a job when the gateway that works on it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from assets.principal import Principal
from assets.sql.blobs import SqlBlobRecords
from serving.api.context import Context
from serving.api.job_runner import JobRunner
from serving.database import open_database
from serving.jobs.jobs import Jobs
from serving.tenants.meter import Meter


async def test_a_gateway_that_ends_gives_its_jobs_to_the_others_at_once(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/j.db")
    jobs = Jobs(engine, Meter(engine, SqlBlobRecords(engine)))
    who = Principal("t", "acme")
    job = jobs.add(who, {"prompt": "a star"})
    drawing = asyncio.Event()

    async def draw(*_: Any) -> None:
        drawing.set()
        await asyncio.Event().wait()

    context = SimpleNamespace(
        backends=SimpleNamespace(
            jobs=jobs,
            directory=SimpleNamespace(keyring=SimpleNamespace(principal_of_job=lambda *_: who)),
        ),
        platform=SimpleNamespace(draw=draw),
        new_job=asyncio.Event(),
    )
    running = asyncio.create_task(JobRunner(cast(Context, context)).run())
    async with asyncio.timeout(10):
        await drawing.wait()
    assert jobs.claim("another") is None
    running.cancel()
    await asyncio.wait([running])
    claimed = jobs.claim("another")
    assert claimed is not None
    assert claimed.id == job.id
