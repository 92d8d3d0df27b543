"""Send a trace to a running platform over HTTP.

Names without an asset become assets that the key may use, by popularity; sizes are the platform's
default.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Sequence

import httpx2

from benchmarks.document import Document
from benchmarks.replay.figures import quantile
from benchmarks.replay.trace import BASE_MODEL, TraceRequest, checkpoint_key, lora_key


def play(trace: Sequence[TraceRequest], url: str, key: str, speed: float, as_json: bool) -> None:
    """Send the trace and print the results. Raises SystemExit if unreachable."""
    try:
        result = asyncio.run(_play(trace, url.rstrip("/"), key, speed))
    except httpx2.HTTPError as error:
        raise SystemExit(f"replay: {url}: {error or type(error).__name__}") from None
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for name, value in result.items():
        print(f"{name:24} {value:.3f}" if isinstance(value, float) else f"{name:24} {value}")


async def _play(trace: Sequence[TraceRequest], url: str, key: str, speed: float) -> Document:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(
        base_url=url, headers=headers, timeout=600.0, limits=limits
    ) as client:
        names = await _names(client, trace)
        began = time.monotonic()
        first_s = trace[0].arrival_s
        late_s = 0.0
        running = []
        for request in trace:
            due = began + (request.arrival_s - first_s) / speed
            wait_s = due - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            late_s = max(late_s, -wait_s)
            running.append(asyncio.create_task(_send(client, request, names)))
        answers = await asyncio.gather(*running)
    latencies = sorted(latency for status, latency, _ in answers if status == 200)
    statuses = Counter(status for status, _, _ in answers)
    tier_counts = Counter(tier for _, _, tiers in answers for tier in tiers)
    return {
        "requests": len(answers),
        **{f"status {status}": count for status, count in sorted(statuses.items())},
        "p50_s": quantile(latencies, 0.5),
        "p95_s": quantile(latencies, 0.95),
        "p99_s": quantile(latencies, 0.99),
        **{f"found on {tier}": count for tier, count in sorted(tier_counts.items())},
        "client late by at most_s": late_s,
    }


async def _send(
    client: httpx2.AsyncClient, request: TraceRequest, names: dict[str, str]
) -> tuple[int, float, list[str]]:
    """Return the status (0: no answer), the seconds, and each asset's tier."""
    body: Document = {
        "prompt": "a red circle on a blue background",
        "steps": request.steps,
        "num_images": request.images,
    }
    if checkpoint := names.get(checkpoint_key(request.checkpoint)):
        body["checkpoint"] = checkpoint
    loras = {
        names[lora_key(name)]: scale for name, scale in request.loras if names.get(lora_key(name))
    }
    if loras:
        body["loras"] = loras
    started = time.monotonic()
    try:
        response = await client.post("/generate/sdxl", json=body)
    except httpx2.HTTPError:
        return 0, math.nan, []
    spent_s = time.monotonic() - started
    if response.status_code != 200:
        return response.status_code, spent_s, []
    receipt = response.json().get("receipt") or {}
    return 200, spent_s, [line["found_on"] for line in receipt.get("assets", [])]


async def _names(client: httpx2.AsyncClient, trace: Sequence[TraceRequest]) -> dict[str, str]:
    """Map the trace's keys to assets; "" is the base model."""
    names: dict[str, str] = {checkpoint_key(BASE_MODEL): ""}
    for kind, key, used in (
        ("checkpoint", checkpoint_key, Counter(r.checkpoint for r in trace)),
        ("lora", lora_key, Counter(name for r in trace for name, _ in r.loras)),
    ):
        assets = await _assets(client, kind)
        stand_ins = ["", *assets] if kind == "checkpoint" else [*assets]
        for rank, (name, _) in enumerate(used.most_common()):
            if name in assets or name in assets.values():
                names[key(name)] = name
            elif stand_ins:
                names.setdefault(key(name), stand_ins[rank % len(stand_ins)])
    return names


async def _assets(client: httpx2.AsyncClient, kind: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for public in (False, True):
        response = await client.get(
            "/v1/assets", params={"asset_type": kind, "is_public": public, "limit": 100}
        )
        response.raise_for_status()
        ready = (a for a in response.json()["data"] if a["status"] == "ready")
        names |= {a["id"]: a["name"] for a in ready}
    return names
