"""The soak's figures: growth, latencies, and whether enough was sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.document import Document
from benchmarks.faults.client import Answer
from benchmarks.soak.resource_usage import PLACES, REST

#: Allowed late/early ratio.
MOST_GROWTH = 1.2

Sample = Document

#: Paths in a sample: memory and descriptors of spared processes, memory of rarely killed ones,
#: numbers of files.
SERIES: Mapping[str, tuple[str, ...]] = {
    "gateway bytes": ("spared", "gateway", "bytes"),
    "gateway descriptors": ("spared", "gateway", "descriptors"),
    "replica bytes": ("spared", "replica", "bytes"),
    "replica descriptors": ("spared", "replica", "descriptors"),
    "serve bytes": ("bytes", "serve"),
    f"{REST} bytes": ("bytes", REST),
    **{f"{place} files": ("files", place) for place in PLACES},
}


def _value(sample: Sample, path: Sequence[str]) -> float | None:
    value: Any = sample
    for name in path:
        value = value.get(name)
        if value is None:
            return None
    return float(value)


def growth(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Return early and late medians: a third of the samples after the first sixth, and the last
    third.

    A series without samples in either is left out.
    """
    third = len(samples) // 3
    parts = {"early": samples[third // 2 : third // 2 + third], "late": samples[-third:]}
    medians = {}
    for name, path in SERIES.items():
        values = {
            part: [v for sample in chosen if (v := _value(sample, path)) is not None]
            for part, chosen in parts.items()
        }
        if all(values.values()):
            medians[name] = {part: median(numbers) for part, numbers in values.items()}
    return medians


def grown(growth: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the series that grew by more than MOST_GROWTH."""
    return [name for name, both in growth.items() if both["late"] > MOST_GROWTH * both["early"]]


def unseen(
    samples: Sequence[Sample], kills: int, spared: Sequence[str], *, looks: float, most_kills: float
) -> list[str]:
    """Return gaps: too few samples or kills (``looks``, ``most_kills`` are expected), a dead spared
    process, an empty series."""
    gaps = []
    if len(samples) < 0.8 * looks:
        gaps.append(f"only {len(samples)} samples of {looks:.0f}")
    if kills < 0.5 * most_kills:
        gaps.append(f"only {kills} kills of {most_kills:.0f}")
    last = samples[-1]["spared"]
    gaps += [f"the spared {process} died" for process in spared if process not in last]
    gaps += [f"no samples of {name}" for name in SERIES if name not in growth(samples)]
    return gaps


def latencies(answers: Sequence[Answer]) -> dict[str, float]:
    ordered = sorted(answer.answered_s - answer.asked_s for answer in answers)
    marks = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    quantiles = {name: ordered[int(share * (len(ordered) - 1))] for name, share in marks.items()}
    return {**quantiles, "max": ordered[-1]}


def table(result: Document) -> str:
    latency = result["latency_s"]
    lines = [
        "| minutes | requests | killed | sent again | lost | wrong images | double charges "
        "| missing charges | p50, s | p99, s | longest, s |",
        "|" + "---:|" * 11,
        f"| {result['minutes']:.0f} | {result['requests']} | {len(result['kills'])} "
        f"| {result['sent_again']} | {result['lost']} | {result['wrong']} "
        f"| {result['double_charges']} | {result['missing_charges']} | {latency['p50']:.2f} "
        f"| {latency['p99']:.2f} | {latency['max']:.2f} |",
        "",
        "| | early | late | |",
        "|---|---:|---:|---:|",
    ]
    for name, both in result["growth"].items():
        early, late = both["early"], both["late"]
        unit = 2**20 if name.endswith("bytes") else 1
        label = name.replace("bytes", "memory, MiB")
        ratio = f"{late / early:.2f}" if early else "–"
        lines.append(f"| {label} | {early / unit:.0f} | {late / unit:.0f} | {ratio} |")
    return "\n".join(lines)
