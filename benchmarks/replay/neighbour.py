"""One tenant against all others: requests without end, and LoRAs without end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isnan
from typing import Any

from benchmarks.replay.figures import quantile
from benchmarks.replay.replica import Hardware
from benchmarks.replay.simulation import OURS, replay
from benchmarks.replay.trace import TraceRequest
from router.admission import QueueLimits


def noisy(trace: Sequence[TraceRequest], tenant: str, times: int) -> list[TraceRequest]:
    """The same stream with every request of one tenant ``times`` over, all through it."""
    rng = random.Random(0)
    span_s = trace[-1].arrival_s
    more = [
        replace(r, arrival_s=rng.random() * span_s)
        for r in trace if r.tenant == tenant
        for _ in range(times - 1)
    ]  # fmt: skip
    return sorted([*trace, *more], key=lambda r: r.arrival_s)


def busiest(trace: Sequence[TraceRequest]) -> str:
    return Counter(r.tenant for r in trace).most_common(1)[0][0]


def loud_neighbour(
    trace: Sequence[TraceRequest], hardware: Hardware, times: int, policies: Sequence[str]
) -> list[dict[str, Any]]:
    """The victims' p95 with and without it, in seconds. The platform's own limits hold."""
    loud = busiest(trace)
    rows = []
    for policy in policies:
        p95: dict[str, float] = {}
        refused: dict[str, int] = {}
        quiet = [r for r in trace if r.tenant != loud]
        for name, stream in {"alone": quiet, "beside": noisy(trace, loud, times)}.items():
            outcome = replay(stream, policy, hardware, limits=QueueLimits(), timeout_s=300.0)
            victims = [
                latency for latency, r in zip(outcome.latency_s, stream, strict=True)
                if r.tenant != loud
            ]  # fmt: skip
            # What is refused, or not begun in time, counts as what takes longest.
            waited = sorted(inf if isnan(latency) else latency for latency in victims)
            p95[name] = quantile(waited, 0.95)
            refused[name] = sum(map(isnan, victims))
        rows.append(
            {
                "policy": policy, "tenant": loud, "times": times,
                "victims_p95_alone_s": p95["alone"], "victims_p95_beside_s": p95["beside"],
                "ratio": p95["beside"] / p95["alone"],
                "victims_refused_alone": refused["alone"],
                "victims_refused_beside": refused["beside"],
            }
        )  # fmt: skip
    return rows


def flooded(trace: Sequence[TraceRequest], share: float) -> list[TraceRequest]:
    """One tenant more, which asks for a LoRA never seen before with every request: of all LoRA
    uses it makes ``share``."""
    rng = random.Random(0)
    uses = sum(bool(r.loras) for r in trace)
    count = int(uses * share / (1 - share))
    span_s = trace[-1].arrival_s
    checkpoint = trace[0].checkpoint
    flood = [
        TraceRequest(rng.random() * span_s, "flood", checkpoint, ((f"flood-{index}", 1.0),))
        for index in range(count)
    ]
    return sorted([*trace, *flood], key=lambda r: r.arrival_s)


def flood_of_loras(
    trace: Sequence[TraceRequest], hardware: Hardware, share: float = 0.5
) -> dict[str, float]:
    """LoRA hits of all the others, without and with the flood: on the devices, and in any tier
    of the node."""
    hits: dict[str, float] = {"flood_share": share}
    for name, stream in {"alone": trace, "beside": flooded(trace, share)}.items():
        outcome = replay(stream, OURS, hardware)
        others = [tenant for tenant in outcome.lora_uses if tenant != "flood"]
        used = sum(outcome.lora_uses[tenant] for tenant in others)
        hits[f"device_{name}"] = 1 - sum(outcome.lora_loads[t] for t in others) / used
        hits[f"node_{name}"] = 1 - sum(outcome.lora_fetches[t] for t in others) / used
    return hits
