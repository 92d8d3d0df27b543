"""Estimates: what they count, what is reserved, and that nothing is generated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from assets.plan import Plan
from serving.bootstrap.backends import open_backends
from serving.tenants.meter import Charge
from tests.support.platforms import Running, put_asset, wait_until

PROMPT = {"prompt": "a small red star", "seed": 3, "steps": 4, "image_encoding": "png"}


@pytest.fixture(scope="module")
def http(platform: Running) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {platform.key('estimates')}"}
    with httpx2.Client(base_url=platform.url, headers=headers, timeout=60) as client:
        yield client


def estimate(http: httpx2.Client, **changes: Any) -> dict[str, Any]:
    answer = http.post("/v1/estimate", json={**PROMPT, **changes})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize(
    ("changes", "evaluations", "rows"),
    [
        ({}, 4, 1.0), ({"cfg_scale": 1.0}, 4, 0.5), ({"sampler": "HEUN"}, 7, 1.0),
        ({"sampler": "PNDM"}, 5, 1.0), ({"sampler": "DPM_PLUS_PLUS_SDE_KARRAS"}, 7, 1.0),
        ({"num_images": 3}, 4, 1.0), ({"width": 64, "height": 96}, 4, 1.0),
    ],
)  # fmt: skip
def test_work_counts_evaluations(
    http: httpx2.Client, changes: dict[str, Any], evaluations: int, rows: float
) -> None:
    found = estimate(http, **changes)
    images = changes.get("num_images", 1)
    size = found["size"]
    assert (found["evaluations"], found["images"]) == (evaluations, images)
    assert found["work"] == evaluations * size["width"] * size["height"] * images * rows
    seconds = found["seconds"]
    assert seconds["total"] == max(seconds["queue"], seconds["fetch"]) + seconds["generate"]
    assert seconds["generate"] > 0


def test_it_tells_fetches_hints_and_errors(
    http: httpx2.Client, sample_files: dict[str, Path]
) -> None:
    asset = put_asset(http, sample_files["lora_alpha"], "lora", "far-lcm-4steps")
    found = estimate(http, loras={"far-lcm-4steps": 1.0}, steps=None)
    (fetch,) = [each for each in found["fetches"] if each["asset"] == "far-lcm-4steps"]
    assert fetch["found_on"] in ("host", "disk", "store")
    assert fetch["size_bytes"] > 0
    assert fetch["seconds"] > 0
    assert (found["steps"], found["evaluations"]) == (4, 4)
    assert {hint["field"] for hint in found["hints"]} >= {"sampler", "steps"}
    body = {**PROMPT, "loras": {asset["id"]: 1.0}}
    http.post("/generate/sdxl", json=body).raise_for_status()
    later = estimate(http, loras={"far-lcm-4steps": 1.0})
    assert later["is_measured"]
    if later["replica"] == found["replica"]:
        assert not [each for each in later["fetches"] if each["asset"] == "far-lcm-4steps"]
    refused = http.post("/v1/estimate", json={**PROMPT, "loras": {"no-such": 1.0}})
    assert refused.status_code == 404


def test_what_is_estimated_is_reserved(http: httpx2.Client, platform: Running) -> None:
    http.post("/generate/sdxl", json=PROMPT).raise_for_status()

    def rows() -> list[dict[str, Any]]:
        return [r for r in http.get("/v1/usage").json()["data"] if r["kind"] == "picture"]

    wait_until(lambda: bool(rows()))
    found = estimate(http, steps=10)
    count = len(rows())
    backends = open_backends(platform.settings)
    try:
        platform.directory.put_plan(Plan("metered", gpu_s_per_month=1e6))
        platform.directory.set_plan("estimates", "metered")
        principal = platform.directory.keyring.authenticate(platform.key("estimates"))
        backends.meter.reserve(Charge("c1", principal, found["work"], found["pool"]), 60.0)
        budget = backends.meter.ledger.budget(principal.tenant_id)
        assert budget.reserved_gpu_s == found["gpu_s"]
        backends.meter.release("c1")
    finally:
        platform.directory.set_plan("estimates", "unlimited")
        backends.close()
    assert len(rows()) == count
    assert 4 * 128 * 128 in [row["details"]["work"] for row in rows()]
