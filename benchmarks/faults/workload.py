"""Faults of the workload: a stampede, an overload, a request that kills replicas."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2

from benchmarks.faults.client import answered, ask, body
from benchmarks.faults.fault import Harm
from router.crash_quarantine import CRASHES

_STAMPEDE = 16
_OVERLOAD = 10
_POISONER = "poisoner"
_POISONED_S = 180.0


def stampede(harm: Harm) -> None:
    """Request one cold asset many times at once."""
    harness = harm.harness
    cold = harness.new_lora("stampede")
    before = _reads(harm)
    with ThreadPoolExecutor(_STAMPEDE) as pool:
        harm.asked += pool.map(
            lambda _: ask(harness.endpoint, 0, {"loras": {cold: 1.0}}), range(_STAMPEDE)
        )
    images = len({answer.image for answer in harm.asked})
    reads = _reads(harm) - before
    harm.seen = f"{_STAMPEDE} at once: reads of the store: {reads}, different images: {images}"
    if (images, reads) != (1, 1):
        harm.lost.append(harm.seen)


def _reads(harm: Harm) -> int:
    return sum(count for path, count in harm.harness.proxy.gets.items() if "/blobs/" in path)


def overload(harm: Harm) -> None:
    """Send ten times the platform's rate, open-loop, without retries."""
    harness = harm.harness
    started = time.monotonic()
    for _ in range(4):
        harm.asked.append(ask(harness.endpoint, 0))
    rate = 4 / (time.monotonic() - started)
    refused: list[str] = []

    def send(index: int) -> None:
        time.sleep(index / (_OVERLOAD * rate))
        asked_s = time.monotonic()
        try:
            response = httpx2.post(
                f"{harness.url}/generate/sdxl",
                json=body(0),
                headers=harness.endpoint.headers,
                timeout=300,
            )
        except httpx2.HTTPError as error:
            harm.lost.append(type(error).__name__)
            return
        if response.is_success:
            harm.asked.append(answered(0, {}, asked_s, response.json()))
        elif response.status_code in (429, 503) and "retry-after" in response.headers:
            refused.append(response.text)
        else:
            harm.lost.append(f"{response.status_code} {response.text[:200]}")

    count = max(100, int(4 * _OVERLOAD * rate))
    before = len(harm.asked)
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(send, range(count)))
    generated = len(harm.asked) - before
    harm.seen = f"{generated} of {count} answered, {len(refused)} refused with Retry-After"
    if not generated or not refused:
        harm.lost.append(harm.seen)


def poison(harm: Harm) -> None:
    """Request another tenant's asset; kill every replica that has it on its device."""
    harness = harm.harness
    endpoint = harness.endpoint_of(_POISONER)
    asset = harness.new_lora("poison", endpoint)
    deaths: set[int] = set()
    with ThreadPoolExecutor(1) as alone:
        until = time.monotonic() + _POISONED_S
        request = {**body(0, {"loras": {asset: 1.0}}), "steps": 100}
        while time.monotonic() < until:
            asking = alone.submit(
                httpx2.post, f"{harness.url}/generate/sdxl", json=request, headers=endpoint.headers,
                timeout=120,
            )  # fmt: skip
            while not asking.done():
                deaths |= _kill_those_with(harm, asset, endpoint.headers)
                time.sleep(0.05)
            answer = asking.result()
            if answer.status_code == 422:
                break
            time.sleep(1.0)
    code = answer.json().get("code", "")
    harm.seen = f"{len(deaths)} replicas died, then it was refused: {answer.status_code} {code}"
    charged = harness.backends().meter.ledger.totals(harness.tenant_id_of(_POISONER))["pictures"]
    if code != "quarantined" or charged or len(deaths) > CRASHES:
        harm.lost.append(f"{harm.seen}; charged {charged}")


def _kill_those_with(harm: Harm, asset: str, headers: dict[str, str]) -> set[int]:
    harness = harm.harness
    try:
        where = httpx2.get(
            f"{harness.url}/v1/assets/{asset}/residency", headers=headers, timeout=10
        )
        replicas = {name for part in where.json()["parts"] for name in part["replicas"]}
        pids = {r["pid"] for r in harness.up() if r["id"] in replicas and r["running"]}
    except (httpx2.HTTPError, KeyError, ValueError):
        return set()
    died = set()
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            died.add(pid)
        except ProcessLookupError:
            continue
    return died
