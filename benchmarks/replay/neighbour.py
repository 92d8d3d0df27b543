"""The effect of one noisy tenant on the others: a flood of requests, and of LoRAs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite, isnan

from benchmarks.document import Document
from benchmarks.replay.figures import quantile, slowdowns
from benchmarks.replay.generator import Population, generate
from benchmarks.replay.replica import Hardware
from benchmarks.replay.simulation import OURS, replay
from benchmarks.replay.trace import TraceRequest
from router.admission import QueueLimits

_PEOPLE = Population()
#: Long sessions of few tenants, nearly one at a time.
_LONG = replace(_PEOPLE, session_requests=60.0, stays=0.97, sessions=2, tenants=60)
_RUSHES = replace(_PEOPLE, most_a_minute=400.0, rush_minutes=10.0)
_LONG_RUSHES = replace(_LONG, most_a_minute=400.0, rush_minutes=10.0)


def _stream(seed: int, people: Population) -> Callable[[], list[TraceRequest]]:
    return lambda: generate(20_000, seed, people)


#: By name: makes the trace (None: the whole replay's), and whether it was held out while the
#: fairness rules were developed.
STREAMS: Mapping[str, tuple[Callable[[], list[TraceRequest]] | None, bool]] = {
    "generator": (None, False),
    "long sessions": (_stream(1, _LONG), False),
    "rushes": (_stream(2, _RUSHES), False),
    "rushes of long sessions": (_stream(3, _LONG_RUSHES), False),
    "generator, seed 4": (_stream(4, _PEOPLE), True),
    "rushes, seed 5": (_stream(5, replace(_RUSHES, tenants=100)), True),
    "rushes of long sessions, seed 6": (_stream(6, replace(_LONG_RUSHES, tenants=120)), True),
}


def noisy(trace: Sequence[TraceRequest], tenant: str, times: int) -> list[TraceRequest]:
    """Return the trace with ``times`` as many requests of one tenant, spread at random."""
    rng = random.Random(0)
    span_s = trace[-1].arrival_s
    more = [
        replace(r, arrival_s=rng.random() * span_s)
        for r in trace if r.tenant == tenant
        for _ in range(times - 1)
    ]  # fmt: skip
    return sorted([*trace, *more], key=lambda r: r.arrival_s)


def busiest(trace: Sequence[TraceRequest]) -> str:
    """Return the tenant with the most requests."""
    return Counter(r.tenant for r in trace).most_common(1)[0][0]


def loud_neighbour(
    trace: Sequence[TraceRequest], hardware: Hardware, times: int, policies: Sequence[str]
) -> list[Document]:
    """Return a row per policy: the others' p95, as seconds and slowdown, and failures (refused or
    late), with and without a noisy tenant, under default queue limits."""
    loud = busiest(trace)
    rows = []
    for policy in policies:
        p95: dict[str, float] = {}
        failed: dict[str, int] = {}
        slowdown: dict[str, float] = {}
        quiet = [r for r in trace if r.tenant != loud]
        for name, stream in {"alone": quiet, "beside": noisy(trace, loud, times)}.items():
            outcome = replay(stream, policy, hardware, limits=QueueLimits(), timeout_s=300.0)
            victims = [
                latency for latency, r in zip(outcome.latency_s, stream, strict=True)
                if r.tenant != loud
            ]  # fmt: skip
            # Failures count as infinitely slow.
            waited = sorted(inf if isnan(latency) else latency for latency in victims)
            p95[name] = quantile(waited, 0.95)
            failed[name] = sum(map(isnan, victims))
            slowed = zip(slowdowns(outcome, stream), stream, strict=True)
            slowdown[name] = quantile(sorted(s for s, r in slowed if r.tenant != loud), 0.95)
        rows.append(
            {
                "policy": policy, "tenant": loud, "times": times,
                "victims_p95_alone_s": _finite(p95["alone"]),
                "victims_p95_beside_s": _finite(p95["beside"]),
                "ratio": _finite(p95["beside"] / p95["alone"]),
                "victims_slowdown_p95_alone": _finite(slowdown["alone"]),
                "victims_slowdown_p95_beside": _finite(slowdown["beside"]),
                "victims": len(quiet),
                "victims_failed_alone": failed["alone"],
                "victims_failed_beside": failed["beside"],
            }
        )  # fmt: skip
    return rows


def _finite(value: float) -> float | None:
    """Return None for infinity: more than 5 % failed."""
    return value if isfinite(value) else None


def flooded(trace: Sequence[TraceRequest], share: float) -> list[TraceRequest]:
    """Add a tenant whose LoRAs are all new and make ``share`` of LoRA uses."""
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
    """Return the others' LoRA hit rates, on devices and in any tier."""
    hits: dict[str, float] = {"flood_share": share}
    for name, stream in {"alone": trace, "beside": flooded(trace, share)}.items():
        outcome = replay(stream, OURS, hardware)
        others = [tenant for tenant in outcome.lora_uses if tenant != "flood"]
        used = sum(outcome.lora_uses[tenant] for tenant in others)
        hits[f"device_{name}"] = 1 - sum(outcome.lora_loads[t] for t in others) / used
        hits[f"node_{name}"] = 1 - sum(outcome.lora_fetches[t] for t in others) / used
    return hits
