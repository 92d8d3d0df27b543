"""Faults of a machine: a full disk, a locked database, a wrong clock."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2

from benchmarks.faults.client import SEEDS, Endpoint, answered, ask, body
from benchmarks.faults.fault import Harm
from benchmarks.faults.harness import Skipped
from tests.support.servers import await_port, free_port

_LOCKED_S = 6.0
#: S3 refuses signatures more than 15 minutes off.
_SKEW_S = 600.0
_LIBFAKETIME = "/usr/lib/*-linux-gnu/faketime/libfaketime.so.1"
_JOBS = 6
_JOB_S = 120.0


def database_locked(harm: Harm) -> None:
    path = harm.harness.settings.data_dir / "platform.db"
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(_LOCKED_S)
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def disk_full(harm: Harm) -> None:
    """Fill the disk tier's file system, then request cold assets."""
    harness = harm.harness
    if not harness.has_small_disk:
        raise Skipped("only root can mount a small disk for the tier")
    cold = [harness.new_lora(f"full-{index}") for index in range(3)]
    ballast = harness.folder / "disk" / "ballast"
    try:
        _fill(ballast)
        free = shutil.disk_usage(harness.folder / "disk").free
        harm.asked += [ask(harness.endpoint, 0, {"loras": {lora: 1.0}}) for lora in cold]
        count = sum(answer.image is not None for answer in harm.asked)
        harm.seen = f"{free} bytes free: {count} of {len(cold)} cold assets used"
    finally:
        ballast.unlink(missing_ok=True)


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        for piece in (b"\0" * (1 << 20), b"\0" * 4096):
            try:
                while True:
                    file.write(piece)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def clock_skewed(harm: Harm) -> None:
    """Start gateways with clocks ahead and behind; send them requests and jobs."""
    harness = harm.harness
    library = next(iter(Path("/").glob(_LIBFAKETIME.removeprefix("/"))), None)
    if library is None:
        raise Skipped("libfaketime is not installed")
    ports = [free_port(), free_port()]
    gateways: list[subprocess.Popen[bytes]] = []
    try:
        for port, skew_s in zip(ports, (_SKEW_S, -_SKEW_S), strict=True):
            gateways.append(_gateway(harm, port, library, skew_s))
        for gateway, port in zip(gateways, ports, strict=True):
            await_port(gateway, port, timeout_s=90)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url, skew_s in zip(urls, (_SKEW_S, -_SKEW_S), strict=True):
            date = httpx2.get(f"{url}/readyz", timeout=60).raise_for_status().headers["date"]
            if abs(parsedate_to_datetime(date).timestamp() - time.time() - skew_s) > 60:
                harm.lost.append(f"a gateway's clock is not {skew_s:+.0f} s away: {date}")
        key = harness.endpoint.key
        endpoints = [Endpoint([url, harness.url], key) for url in (*urls, harness.url)]
        with ThreadPoolExecutor(len(endpoints)) as pool:
            for _ in range(2):
                harm.asked += pool.map(lambda endpoint: ask(endpoint, SEEDS[1]), endpoints)
        _jobs(harm, [*urls, harness.url])
    finally:
        for gateway in gateways:
            gateway.terminate()
        for gateway in gateways:
            try:
                gateway.wait(timeout=60)
            except subprocess.TimeoutExpired:
                gateway.kill()
                gateway.wait()
                harm.lost.append("a gateway did not end within 60 s of SIGTERM")


def _gateway(harm: Harm, port: int, library: Path, skew_s: float) -> subprocess.Popen[bytes]:
    environment = {
        **harm.harness.gateway_environment(),
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{skew_s:+.0f}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "AO_PUBLIC_URL": f"http://127.0.0.1:{port}",
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "serving.cluster.gateway:app"]
    with open(harm.harness.folder / f"gateway{skew_s:+.0f}.log", "wb") as output:
        return subprocess.Popen(
            [*command, "--port", str(port), "--log-level", "warning"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _jobs(harm: Harm, urls: list[str]) -> None:
    """Submit jobs to all gateways; each must end once."""
    headers = {**harm.harness.endpoint.headers, "X-OctoAI-Async": "1"}
    jobs = {}
    asked_s = time.monotonic()
    for index in range(_JOBS):
        url = urls[index % len(urls)]
        accepted = httpx2.post(
            f"{url}/generate/sdxl", json=body(SEEDS[2]), headers=headers, timeout=60
        )
        jobs[accepted.raise_for_status().json()["response_id"]] = url
    until = time.monotonic() + _JOB_S
    ended = 0
    for job, url in jobs.items():
        while httpx2.get(f"{url}/v1/jobs/{job}", timeout=60).json()["status"] != "completed":
            if time.monotonic() > until:
                break
            time.sleep(0.1)
        result = httpx2.get(f"{url}/v1/jobs/{job}/result", timeout=60)
        if result.is_success:
            ended += 1
            harm.asked.append(replace(answered(SEEDS[2], {}, asked_s, result.json()), charge=job))
        else:
            harm.lost.append(f"job {job}: {result.status_code} {result.text[:200]}")
    harm.seen = (
        f"clocks {_SKEW_S / 60:.0f} minutes ahead and behind: {ended} of {len(jobs)} jobs ended"
    )
