"""Finished jobs do not make claims more expensive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from assets.principal import Principal
from serving.jobs.store import JobRow, JobStore
from serving.tenants.meter import Meter
from tests.support.generation import REQUEST

WAITING = 256
TENANTS = tuple(Principal(f"claims-{index}", "t") for index in range(8))


def tenant(index: int) -> Principal:
    return TENANTS[index % len(TENANTS)]


@pytest.fixture
def shared(database: sa.Engine) -> Iterator[sa.Engine]:
    """Deletes the test's jobs afterwards."""
    yield database
    with database.begin() as connection:
        ids = [each.tenant_id for each in TENANTS]
        connection.execute(sa.delete(JobRow).where(JobRow.tenant_id.in_(ids)))


def finished(first: int, count: int) -> list[dict[str, Any]]:
    now = time.time()
    return [
        {
            "id": f"done-{first + index}", "tenant_id": tenant(index).tenant_id, "tenant_name": "t",
            "weight": 1.0, "status": "completed", "request": {}, "claimed_by": "w",
            "claimed_until_s": now - index, "created_at_s": now - index,
            "finished_at_s": now - index, "failures": 0,
        }
        for index in range(count)
    ]  # fmt: skip


def steps_of(engine: sa.Engine, work: Callable[[], Any]) -> int:
    """Count SQLite's VM steps / 100, or PostgreSQL's buffer reads."""
    if engine.dialect.name == "sqlite":
        return _sqlite_steps(engine, work)
    statements: list[tuple[str, Any]] = []

    def record(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", record)
    try:
        work()
    finally:
        sa.event.remove(engine, "before_cursor_execute", record)
    blocks = 0
    with engine.begin() as connection:
        for statement, parameters in statements:
            if statement.lstrip().startswith("SELECT") and "FROM jobs" in statement:
                explained = connection.exec_driver_sql(
                    f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
                ).scalar_one()
                blocks += explained[0]["Plan"]["Shared Hit Blocks"]
                blocks += explained[0]["Plan"]["Shared Read Blocks"]
    return blocks


def _sqlite_steps(engine: sa.Engine, work: Callable[[], Any]) -> int:
    counted = [0]

    def count() -> int:
        counted[0] += 1
        return 0

    def watch(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(count, 100)

    sa.event.listen(engine, "checkout", watch)
    try:
        work()
    finally:
        sa.event.remove(engine, "checkout", watch)
    return counted[0]


def test_the_cost_of_a_claim_does_not_grow_with_finished_jobs(shared: sa.Engine) -> None:
    jobs = JobStore(shared, Meter(shared))
    for index in range(WAITING):
        jobs.add(tenant(index), REQUEST)
    costs: dict[str, list[int]] = {"claim": [], "add": [], "expired": []}
    existing = 0
    for count in (1_000, 60_000):
        with shared.begin() as connection:
            connection.execute(sa.insert(JobRow), finished(existing, count - existing))
        existing = count
        with shared.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")  # both databases do so later
        costs["claim"].append(steps_of(shared, lambda: jobs.claim("w")))
        costs["add"].append(steps_of(shared, lambda: jobs.add(TENANTS[1], REQUEST)))
        costs["expired"].append(steps_of(shared, jobs.expired))
    for what, (few, many) in costs.items():
        assert many <= 3 * few + 20, (what, few, many)  # an index may be a level deeper
