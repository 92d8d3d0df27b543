"""The results of a replay as figures, tables and plots."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pvariance

from benchmarks.document import Document
from benchmarks.replay.caches import belady_misses, lora_uses, lru_misses
from benchmarks.replay.simulation import Outcome
from benchmarks.replay.trace import TraceRequest


def quantile(sorted_values: Sequence[float], share: float) -> float:
    """Return the value at a share of a sorted sequence; NaN if empty."""
    if not sorted_values:
        return math.nan
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def jain(values: Iterable[float]) -> float:
    """Return Jain's fairness index: 1 if all are equal, 1/n if one has everything (Jain, Chiu and
    Hawe 1984)."""
    all_values = list(values)
    squares = sum(value * value for value in all_values)
    return sum(all_values) ** 2 / (len(all_values) * squares) if squares else math.nan


def slowdowns(outcome: Outcome, trace: Sequence[TraceRequest]) -> list[float]:
    """Return latencies over the time on an idle replica with the assets; infinite if not served."""
    hardware = outcome.hardware
    return [
        math.inf
        if math.isnan(latency)
        else latency / (hardware.swap_s + r.cost * hardware.picture_s)
        for latency, r in zip(outcome.latency_s, trace, strict=True)
    ]


def figures(outcome: Outcome, trace: Sequence[TraceRequest]) -> Document:
    """Return a result row. Refused and late requests are infinitely slow."""
    done = [
        (latency, r) for latency, r in zip(outcome.latency_s, trace, strict=True)
        if not math.isnan(latency)
    ]  # fmt: skip
    latencies = sorted(math.inf if math.isnan(each) else each for each in outcome.latency_s)
    by_tenant: dict[str, list[float]] = {}
    slowed: dict[str, list[float]] = {}
    picture_s = outcome.hardware.picture_s
    for latency, request in done:
        by_tenant.setdefault(request.tenant, []).append(request.cost * picture_s / latency)
    for slowdown, request in zip(slowdowns(outcome, trace), trace, strict=True):
        slowed.setdefault(request.tenant, []).append(slowdown)
    tenants = sorted(quantile(sorted(mine), 0.5) for mine in slowed.values() if len(mine) >= 20)
    mean_busy = fmean(outcome.busy_s)
    return {
        "policy": outcome.policy,
        "requests": len(trace),
        "refused": outcome.refused,
        "failed": len(trace) - len(done),
        "checkpoint_misses": outcome.checkpoint_loads / max(1, len(done)),
        "lora_misses": outcome.lora_loads.total() / max(1, outcome.lora_uses.total()),
        "store_bytes": outcome.store_bytes,
        "p50_s": quantile(latencies, 0.5),
        "p95_s": quantile(latencies, 0.95),
        "p99_s": quantile(latencies, 0.99),
        # Over the median slowdown of each tenant with enough requests.
        "slowdown_p50": quantile(tenants, 0.5),
        "slowdown_p95": quantile(tenants, 0.95),
        "slowdown_p99": quantile(tenants, 0.99),
        "drawing_share": mean_busy / outcome.span_s,
        "imbalance": max(outcome.busy_s) / mean_busy,
        # Over each tenant's mean of generation time / latency.
        "fairness": jain(fmean(speeds) for speeds in by_tenant.values() if len(speeds) >= 20),
    }


def written(value: float | None, form: str = "{:.1f}") -> str:
    """Format a quantile; None means infinite."""
    return "∞" if value is None else form.format(value)


COLUMNS = {
    "policy": ("policy", "{}"),
    "checkpoint_misses": ("checkpoint misses", "{:.3f}"),
    "lora_misses": ("LoRA misses", "{:.3f}"),
    "store_bytes": ("from the store, TB", "{:.1f}"),
    "p50_s": ("p50, s", "{:.1f}"),
    "p95_s": ("p95, s", "{:.1f}"),
    "p99_s": ("p99, s", "{:.1f}"),
    "slowdown_p50": ("slowdown of tenants, p50", "{:.1f}"),
    "slowdown_p95": ("p95", "{:.1f}"),
    "slowdown_p99": ("p99", "{:.1f}"),
    "drawing_share": ("generating", "{:.2f}"),
    "imbalance": ("imbalance", "{:.2f}"),
    "fairness": ("Jain", "{:.2f}"),
}


def table(rows: Sequence[Document]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(title for title, _ in COLUMNS.values()) + " |"]
    lines.append("|" + "---|" * len(COLUMNS))
    for row in rows:
        cells = []
        for name, (_, form) in COLUMNS.items():
            value = row.get(name)
            if name == "store_bytes" and value is not None:
                value /= 1e12
            cells.append("–" if value is None else form.format(value))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


#: Of the real stream; see generator.py.
PUBLISHED = {
    "requests with LoRAs": 0.22,
    "of those, with one": 0.93,
    "scales that are not 1.0": 0.44,
    "different LoRAs": 874,
    "different checkpoints": 105,
    "top 5 checkpoints": 0.70,
    "top 50 LoRAs": 0.56,
    "LoRAs of one tenant only": 0.83,
    "repeats the tenant's last assets": 0.68,
    "30 steps": 0.88,
    "requests a minute, median": 2,
    "requests a minute, most": 64,
    "squared variation of the gaps": 144,
    "LoRA hits, 32 slots, LRU": 0.881,
    "LoRA hits, 32 slots, Belady": 0.918,
    "the same, shuffled, LRU": 0.292,
    "the same, shuffled, Belady": 0.556,
    "checkpoint misses, 8 replicas at random": 0.62,
}


def describe(trace: Sequence[TraceRequest]) -> dict[str, float]:
    """Return the figures published for the real trace."""
    uses = lora_uses(trace)
    names = [name for _, _, name in uses]
    scales = [scale for r in trace for _, scale in r.loras]
    loras, checkpoints = Counter(names), Counter(r.checkpoint for r in trace)
    users: dict[str, set[str]] = {}
    for _, tenant, name in uses:
        users.setdefault(name, set()).add(tenant)
    last: dict[str, tuple[str, ...]] = {}
    repeats = again = 0
    for r in trace:
        again += r.tenant in last
        repeats += last.get(r.tenant) == r.assets
        last[r.tenant] = r.assets
    gaps = [b.arrival_s - a.arrival_s for a, b in pairwise(trace)]
    minutes = Counter(int(r.arrival_s // 60) for r in trace)
    span = int(trace[-1].arrival_s // 60) + 1
    counts = sorted(minutes[minute] for minute in range(span))
    shuffled = list(uses)
    rng = random.Random(0)
    rng.shuffle(shuffled)
    on_device, misses = [""] * 8, 0
    for r in trace:
        at = rng.randrange(8)
        misses += on_device[at] != r.checkpoint
        on_device[at] = r.checkpoint
    with_loras = [r for r in trace if r.loras]
    values = [
        len(with_loras) / len(trace),
        sum(len(r.loras) == 1 for r in with_loras) / max(1, len(with_loras)),
        sum(scale != 1.0 for scale in scales) / max(1, len(scales)),
        len(loras),
        len(checkpoints),
        sum(n for _, n in checkpoints.most_common(5)) / len(trace),
        sum(n for _, n in loras.most_common(50)) / max(1, len(uses)),
        sum(len(tenants) == 1 for tenants in users.values()) / max(1, len(users)),
        repeats / max(1, again),
        sum(r.steps == 30 for r in trace) / len(trace),
        counts[len(counts) // 2],
        counts[-1],
        pvariance(gaps) / fmean(gaps) ** 2,
        1 - lru_misses(uses, 32) / max(1, len(uses)),
        1 - belady_misses(uses, 32) / max(1, len(uses)),
        1 - lru_misses(shuffled, 32) / max(1, len(uses)),
        1 - belady_misses(shuffled, 32) / max(1, len(uses)),
        misses / len(trace),
    ]
    return dict(zip(PUBLISHED, values, strict=True))


def plot(rows: Sequence[Document], path: Path) -> None:
    """Plot p99 and checkpoint misses over load, one line per policy."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine = [row for row in rows if row["policy"] == policy]
        loads = [row["load"] for row in mine]
        style: Document = {"marker": "o", "linewidth": 1.2, "markersize": 4}
        if policy == "ours":
            style |= {"linewidth": 2.6, "color": "black", "zorder": 3}
        if "clairvoyant" in policy:
            style |= {"linestyle": "--", "color": "grey"}
        left.plot(loads, [row["p99_s"] for row in mine], label=policy, **style)
        if mine[0].get("checkpoint_misses") is not None:
            right.plot(loads, [row["checkpoint_misses"] for row in mine], **style)
    left.set(yscale="log", xlabel="offered load, without any loading", ylabel="p99, seconds")
    right.set(xlabel="offered load, without any loading", ylabel="checkpoint misses a request")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
