"""No response, receipt, tier or duration reveals that another tenant has the same private file."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from assets.families.schema import ParameterSchema
from tests.support.platforms import Running, running
from tests.support.samples import write_inversion

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FILES = 100
#: Samples of one distribution differ more once in a thousand times.
LEAST_P = 1e-3
PROMPT = {"prompt": "a small red word", "seed": 3, "steps": 1}


def rank_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided Mann-Whitney, normal approximation."""
    ranked = sorted([*((x, 0) for x in a), *((x, 1) for x in b)])
    of_a = sum(rank for rank, (_, sample) in enumerate(ranked, 1) if sample == 0)
    n, m = len(a), len(b)
    u = of_a - n * (n + 1) / 2
    z = (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(abs(z) / math.sqrt(2))


def test_the_rank_test_detects_a_difference() -> None:
    rng = random.Random(1)
    a = [rng.gauss(10.0, 1.0) for _ in range(FILES)]
    assert rank_test(a, [rng.gauss(10.0, 1.0) for _ in range(FILES)]) > LEAST_P
    assert rank_test(a, [rng.gauss(9.0, 1.0) for _ in range(FILES)]) < LEAST_P


@dataclass
class Observations:
    """What an uploader observes, per kind; durations in seconds."""

    ready_s: list[float] = field(default_factory=list)
    generated_s: list[float] = field(default_factory=list)
    answers: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("oracle")
    with running(folder, "--in-process", replicas=1, effect_probe=False) as server:
        yield server


def test_a_second_tenant_cannot_detect_an_identical_file(
    platform: Running, schema: ParameterSchema, tmp_path: Path
) -> None:
    def files(kind: str, seed: int) -> list[Path]:
        return [
            write_inversion(tmp_path / kind / f"{i}.safetensors", schema, seed=seed + i)
            for i in range(FILES)
        ]

    held, fresh = files("held", 1000), files("fresh", 5000)
    with client_of(platform, "holder") as holder, client_of(platform, "curious") as curious:
        for index, path in enumerate(held):
            use(holder, upload(holder, path, f"a{index}")[0])
        attempts = 0
        while True:
            attempts += 1
            seen = {"held": Observations(), "fresh": Observations()}
            trials = [("held", path) for path in held] + [("fresh", path) for path in fresh]
            random.Random(attempts).shuffle(trials)
            for index, (kind, path) in enumerate(trials):
                observe(curious, path, f"b{attempts}-{index}", seen[kind])
            assert seen["held"].answers == seen["fresh"].answers
            p = {
                what: rank_test(getattr(seen["held"], what), getattr(seen["fresh"], what))
                for what in ("ready_s", "generated_s")
            }
            for what, value in p.items():
                medians = [statistics.median(getattr(s, what)) * 1e3 for s in seen.values()]
                print(
                    f"{what}: {medians[0]:.1f} ms held, {medians[1]:.1f} ms fresh, p = {value:.3f}"
                )
            if min(p.values()) > LEAST_P:
                return
            # Fails by chance less than once in 100,000 runs.
            assert attempts < 2, p


def client_of(platform: Running, tenant: str) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {platform.key(tenant)}"}
    return httpx2.Client(base_url=platform.url, headers=headers, timeout=60)


def upload(http: httpx2.Client, path: Path, name: str) -> tuple[str, dict[str, Any], float]:
    """Return id, JSON once ready, and seconds."""
    data = path.read_bytes()
    started = time.perf_counter()
    new = {"asset_type": "textual_inversion", "name": name}
    created = http.post("/v1/assets", json=new).json()
    asset_id = str(created["asset"]["id"])
    httpx2.put(created["transfer_api"]["put_url"], content=data).raise_for_status()
    http.post(f"/v1/assets/{asset_id}/complete-upload", json={}).raise_for_status()
    while (asset := http.get(f"/v1/assets/{asset_id}").json()["asset"])["status"] == "uploaded":
        time.sleep(0.002)
    return asset_id, asset, time.perf_counter() - started


def use(http: httpx2.Client, asset_id: str) -> tuple[dict[str, Any], float]:
    started = time.perf_counter()
    answer = http.post("/generate/sdxl", json={**PROMPT, "textual_inversions": {asset_id: "word"}})
    answer.raise_for_status()
    return answer.json(), time.perf_counter() - started


def observe(http: httpx2.Client, path: Path, name: str, seen: Observations) -> None:
    asset_id, asset, ready_s = upload(http, path, name)
    answer, generated_s = use(http, asset_id)
    (entry,) = (a for a in answer["receipt"]["assets"] if a["asset"] == asset_id)
    seen.ready_s.append(ready_s)
    seen.generated_s.append(generated_s)
    state = (asset["status"], asset["status_details"], asset["size_bytes"], sorted(asset["report"]))
    seen.answers.add(f"{state} {entry['found_on']} {entry['bytes_moved']} {sorted(entry)}")
    assert http.delete(f"/v1/assets/{asset_id}").is_success
