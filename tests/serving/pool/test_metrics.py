"""Metrics and readiness: documented names, correct values."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx2
import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.asset_fetch import AssetFetch
from router.pool import Pool
from serving.api.metrics import REQUESTS, SECONDS
from serving.cluster.dispatcher_client import merge_families
from serving.generation.contract import GenerationResult, Swap, Timings
from serving.generation.status import (
    DispatcherStatus,
    PoolState,
    PoolStatus,
    ReplicaStart,
    ReplicaStatus,
)
from serving.pool.fakes import FakeReplica
from serving.pool.metrics import PoolMetrics
from tests.serving.pool.test_dispatcher import running_dispatcher, submission
from tests.support.platforms import Running

ROOT = Path(__file__).parents[3]
PROMPT = {"prompt": "a star", "steps": 1, "seed": 1}
STATUS = DispatcherStatus(
    waiting=2,
    held=1,
    work_per_s=5.0,
    bytes_per_s={},
    prefetched=0,
    prefetch_precision=0.5,
    quarantined=0,
    replicas=[
        ReplicaStatus(
            id="a-0", pid=1, running=1, free_in_s=0.0, resident={"gpu": 3},
            eviction={"gpu": "visits"},
        )
    ],
)  # fmt: skip


def pool_metrics(pool: str) -> PoolMetrics:
    metrics = PoolMetrics(pool)
    timings = Timings(queue_ms=20.0, swap_ms=2.0, denoise_ms=500.0)
    found = (AssetFetch("key", "disk", 100, 0.1),)
    result = GenerationResult((b"x", b"y"), "a-0", found, Swap(0, 0, 0, 0), timings)
    metrics.generated("gold", submission("r").request, result)
    metrics.ended("gold", "drawn")
    metrics.retried()
    metrics.event("ordered")
    metrics.started({"node": 2.0})
    return metrics


def status(pool: str) -> PoolStatus:
    replicas = [
        ReplicaStart(id=f"{pool}-0", is_up=True),
        ReplicaStart(id=f"{pool}-1", is_up=False, phase="model"),
    ]
    return PoolStatus(Pool(pool), PoolState(waiting=2, replicas=replicas))


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_the_document_names_every_family_with_its_labels() -> None:
    families = [
        *pool_metrics("a").families(STATUS, status("a")),
        *REQUESTS.collect(),
        *SECONDS.collect(),
    ]
    documented = {
        name: set(labels.split(", "))
        for name, labels in re.findall(
            r"^\| `(ao_\w+)` \| ([\w, ]+) \|", (ROOT / "docs" / "metrics.md").read_text(), re.M
        )
    }
    exported = {
        family.name + ("_total" if family.type == "counter" else ""): family for family in families
    }
    assert documented.keys() == exported.keys()
    for name, family in exported.items():
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == documented[name], name


def test_metrics_of_pools_are_merged_by_family() -> None:
    first, second = (pool_metrics(pool).families(STATUS, status(pool)) for pool in "ab")
    merged = merge_families([first, second])
    assert len(merged) == len(first) == len({family.name for family in merged})
    images = next(family for family in merged if family.name == "ao_pictures")
    totals = {s.labels["pool"]: s.value for s in images.samples if s.name.endswith("_total")}
    assert totals == {"a": 2.0, "b": 2.0}


async def test_every_submission_counts_as_one_outcome() -> None:
    replica = FakeReplica("a-0")
    async with running_dispatcher(replica) as dispatcher:
        await dispatcher.submit(replace(submission("good"), plan="gold"))
        replica.fail_with = ValueError("no")
        with pytest.raises(ValueError, match="no"):
            await dispatcher.submit(replace(submission("bad"), plan="gold"))
        requests = next(
            f for f in dispatcher.metrics.families(STATUS, status("a")) if f.name == "ao_requests"
        )
        counts = {
            (s.labels["plan"], s.labels["outcome"]): s.value
            for s in requests.samples
            if s.name.endswith("_total")
        }
        assert counts == {("gold", "drawn"): 1.0, ("gold", "failed"): 1.0}


def test_a_running_platform_counts_and_is_ready(platform: Running) -> None:
    headers = {"Authorization": f"Bearer {platform.key('measured')}"}
    with httpx2.Client(base_url=platform.url, headers=headers, timeout=60) as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()) == (
            200,
            {"status": "ready", "database": "ok", "store": "ok", "pools": "ok"},
        )
        before = values(http.get("/metrics").text)
        http.post("/generate/sdxl", json={**PROMPT, "loras": {"night": 1.0}}).raise_for_status()
        assert http.get("/no/such/path").status_code == 404
        generated = ("ao_pictures_total", (("plan", "unlimited"), ("pool", "default")))
        deadline = time.monotonic() + 10
        while (after := values(http.get("/metrics").text)).get(generated) == before.get(generated):
            assert time.monotonic() < deadline  # cached for up to a second
            time.sleep(0.1)
    post = (("method", "POST"), ("route", "/generate/sdxl"), ("status", "200"))
    not_found = (("method", "none"), ("route", "none"), ("status", "404"))
    for sample in (
        generated,
        ("ao_http_requests_total", post),
        ("ao_http_requests_total", not_found),
    ):
        assert after[sample] == before.get(sample, 0.0) + 1, sample
    label_values = {value for _, labels in after for _, value in labels}
    assert not [value for value in label_values for name in ("measured", "night") if name in value]


def test_readiness_fails_and_names_the_store_when_it_is_missing(platform: Running) -> None:
    store = platform.settings.data_dir / "store"
    store.rename(store.with_name("elsewhere"))
    try:
        deadline = time.monotonic() + 10
        while (answer := httpx2.get(f"{platform.url}/readyz", timeout=30)).status_code == 200:
            assert time.monotonic() < deadline  # cached for up to a second
            time.sleep(0.1)
    finally:
        store.with_name("elsewhere").rename(store)
    assert answer.status_code == 503
    assert answer.json()["store"] != "ok"
    assert answer.json()["database"] == "ok"
    assert str(store) not in answer.text
