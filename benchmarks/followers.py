"""What following costs, and what a cancelled job costs.

    python -m benchmarks followers        # about five minutes

One gateway and one replica of one thread, from an empty pool. It records the events of the job that
wakes the pool; times generations with 0, 1 and 50 followers, in turn; cancels jobs while they
generate; measures the gateway with 2,000 followers of jobs in which nothing happens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import msgspec
import psutil
from sqlalchemy import Engine, insert

from benchmarks.document import Document
from serving.bootstrap.backends import open_backends
from serving.jobs.store import JobRow
from serving.settings import PoolSettings, Settings
from tests.support.generation import REQUEST
from tests.support.servers import end_serving, free_port, start_serving

RESULT = Path(__file__).parent / "results" / "followers.json"
FOLLOWERS = (0, 1, 50)
STEPS, IMAGES = 40, 2
IDLE_FOLLOWERS = 2_000
#: Of connections at once, while the idle followers come.
_BATCH = 50
CANCELLED_STEPS = 200
Event = tuple[str, Document]


@dataclass(frozen=True)
class Platform:
    http: httpx2.AsyncClient
    settings: Settings
    gateway: psutil.Process

    async def accept(self, **fields: Any) -> str:
        body = {"prompt": "a small red star", "seed": 1, **fields}
        headers = {"X-OctoAI-Async": "1"}
        answer = await self.http.post("/generate/sdxl", json=body, headers=headers)
        answer.raise_for_status()
        return str(answer.json()["response_id"])

    async def events(self, job: str, *, previews: bool = False) -> AsyncIterator[Event]:
        params = {"previews": str(previews).lower()}
        async with self.http.stream("GET", f"/v1/jobs/{job}/events", params=params) as answer:
            answer.raise_for_status()
            name = ""
            async for line in answer.aiter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)

    async def follow(self, job: str, *, previews: bool = False) -> int:
        """Return the number of events."""
        return len([event async for event in self.events(job, previews=previews)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks followers")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--followers", type=int, default=IDLE_FOLLOWERS, help="that are idle")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="followers-") as temporary:
        folder = Path(temporary)
        settings = Settings(
            data_dir=folder / "data",
            port=free_port(),
            gateways=1,
            pools={"default": PoolSettings(min=0, max=1, idle_s=3600.0)},
            max_connections=arguments.followers + 200,
        )
        process = start_serving(settings, folder / "serve.log", environment=os.environ)
        try:
            result = asyncio.run(measure(settings, process.pid, arguments))
        finally:
            end_serving(process)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else table(result))


async def measure(settings: Settings, pid: int, arguments: argparse.Namespace) -> Document:
    backends = open_backends(settings)
    backends.directory.add_tenant("bench")
    key = backends.directory.keyring.add_key("bench").text
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(
        base_url=settings.resolved_public_url,
        headers={"Authorization": f"Bearer {key}"},
        timeout=120,
        limits=limits,
    ) as http:
        platform = Platform(http, settings, _gateway(pid))
        waking = await _waking(platform)
        speed = await _speed(platform, arguments.rounds)
        cancelled = [await _cancelled(platform, index) for index in range(5)]
        idle = await _idle(platform, backends.database, arguments.followers)
    backends.close()
    return {
        "waking": waking, "rounds": arguments.rounds, "speed": speed,
        "cancelled": cancelled, "idle": idle,
    }  # fmt: skip


def _gateway(pid: int) -> psutil.Process:
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            if any("spawn_main" in part for part in child.cmdline()):
                return child
    raise SystemExit("no gateway was found")


async def _waking(platform: Platform) -> list[Document]:
    """The events of a job that wakes the pool, with the second of each."""
    job = await platform.accept(steps=STEPS)
    started = time.monotonic()
    return [
        {"at_s": round(time.monotonic() - started, 2), "event": name, "data": data}
        async for name, data in platform.events(job)
    ]


async def _speed(platform: Platform, rounds: int) -> list[Document]:
    samples: dict[tuple[int, bool], list[float]] = {}
    events: dict[tuple[int, bool], int] = {}
    cases = [(count, previews) for count in FOLLOWERS for previews in (False, True)]
    cases.remove((0, True))
    for index in range(rounds + 1):
        for case in cases:
            count, previews = case
            job = await platform.accept(steps=STEPS, num_images=IMAGES)
            followers = [platform.follow(job, previews=previews) for _ in range(count)]
            seen = await asyncio.gather(*followers)
            denoise_ms = (await _result(platform, job))["timings_ms"]["denoise"]
            if index:  # warm-up
                samples.setdefault(case, []).append(denoise_ms)
                events[case] = sum(seen)
    base = median(samples[0, False])
    return [
        {
            "followers": count,
            "previews": previews,
            "denoise_ms": median(values),
            "ratio": median(values) / base,
            "events": events[count, previews],
        }
        for (count, previews), values in samples.items()
    ]


async def _result(platform: Platform, job: str) -> Document:
    while True:
        state = (await platform.http.get(f"/v1/jobs/{job}")).json()
        if state["status"] == "completed":
            answer = await platform.http.get(f"/v1/jobs/{job}/result")
            answer.raise_for_status()
            return dict(answer.json())
        await asyncio.sleep(0.5)  # polling takes time from the engine


async def _cancelled(platform: Platform, index: int) -> Document:
    """Cancel a job while it generates; the steps until its replica is free again."""
    job = await platform.accept(steps=CANCELLED_STEPS, seed=100 + index)
    pace: list[tuple[float, int]] = []
    async for name, data in platform.events(job):
        if name == "step":
            pace.append((time.monotonic(), data["step"]))
        if len(pace) == 4:
            break
    (first_s, first), (last_s, last) = pace[0], pace[-1]
    step_s = (last_s - first_s) / (last - first)
    asked_s = time.monotonic()
    (await platform.http.post(f"/v1/jobs/{job}/cancel")).raise_for_status()
    answered_s = time.monotonic()
    while (await platform.http.get("/v1/status")).json()["replicas"][0]["running"]:
        await asyncio.sleep(0.002)
    free_s = time.monotonic()
    usage = (await platform.http.get("/v1/usage", params={"limit": 1000})).json()
    attempts = [row for row in usage["data"] if row["kind"] == "attempt"]
    return {
        "step_ms": step_s * 1000,
        "steps_until_free": (free_s - asked_s) / step_s,
        "answered_ms": (answered_s - asked_s) * 1000,
        "steps_done": last + (asked_s - last_s) / step_s,
        "steps_charged": attempts[-1]["quantity"] / step_s,
    }


async def _idle(platform: Platform, database: Engine, count: int) -> Document:
    """Follow jobs that were put back for an hour."""
    before = _memory(platform)
    now = time.time()
    row = {
        "tenant_id": "idle", "tenant_name": "idle", "weight": 1.0, "status": "pending",
        "request": msgspec.to_builtins(REQUEST), "created_at_s": now,
        "claimed_until_s": now + 3600.0,
    }  # fmt: skip
    waiting = [f"job_idle_{index}" for index in range(count)]
    with database.begin() as connection:
        connection.execute(insert(JobRow), [{**row, "id": job} for job in waiting])
    opened = asyncio.Semaphore(_BATCH)
    arrived = 0

    async def follow(job: str) -> None:
        nonlocal arrived
        await opened.acquire()
        async with platform.http.stream("GET", f"/v1/jobs/{job}/events") as answer:
            answer.raise_for_status()
            arrived += 1
            opened.release()
            async for _ in answer.aiter_bytes():
                pass

    started = time.monotonic()
    streams = [asyncio.create_task(follow(job)) for job in waiting]
    while arrived < count:
        failed = [task for task in streams if task.done() and task.exception()]
        if failed:
            raise SystemExit(f"a follower failed: {failed[0].exception()}")
        await asyncio.sleep(0.1)
    opened_s = time.monotonic() - started
    await asyncio.sleep(5)
    cpu = sum(platform.gateway.cpu_times()[:2])
    await asyncio.sleep(20)
    cpu = sum(platform.gateway.cpu_times()[:2]) - cpu
    during = _memory(platform)
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    return {
        "followers": count,
        "opened_s": opened_s,
        "gateway_before_mb": before / 1e6,
        "gateway_mb": during / 1e6,
        "kb_each": (during - before) / count / 1e3,
        "gateway_cpu": cpu / 20,
    }


def _memory(platform: Platform) -> int:
    return int(platform.gateway.memory_full_info().uss)


def table(result: Document) -> str:
    lines = [
        "| followers | previews | denoising, ms | ratio | events received |",
        "|---:|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row['followers']} | {'yes' if row['previews'] else 'no'} | {row['denoise_ms']:.0f} "
        f"| {row['ratio']:.3f} | {row['events']} |"
        for row in result["speed"]
    ]
    lines += [
        "",
        "| cancelled after step | step, ms | steps until its replica is free | steps charged |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['steps_done']:.1f} | {row['step_ms']:.0f} | {row['steps_until_free']:.1f} "
        f"| {row['steps_charged']:.1f} |"
        for row in result["cancelled"]
    ]
    idle = result["idle"]
    lines += [
        "",
        "| idle followers | gateway before, MB | with them, MB | each, kB | its CPU |",
        "|---:|---:|---:|---:|---:|",
        f"| {idle['followers']} | {idle['gateway_before_mb']:.0f} | {idle['gateway_mb']:.0f} "
        f"| {idle['kb_each']:.1f} | {idle['gateway_cpu']:.1%} |",
    ]
    return "\n".join(lines)


def waking_table(result: Document) -> str:
    """The recorded stream of the job that woke the pool."""
    lines = ["| s | event | data |", "|---:|---|---|"]
    for row in result["waking"]:
        data = ", ".join(f"{name}: {value}" for name, value in row["data"].items())
        lines.append(f"| {row['at_s']:.1f} | {row['event']} | {data} |")
    return "\n".join(lines)
