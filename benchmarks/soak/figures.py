"""The soak's figures: what was seen, whether it grew, whether it was watched at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.faults.client import Answer
from benchmarks.soak.resource_usage import PLACES, REST

#: From the first part to the last, of what should stay as it is.
MOST_GROWTH = 1.2

Sample = Mapping[str, Any]


#: Memory and descriptors of the two that were spared, memory of what is hardly killed, files: by
#: name, where in a sample it is.
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
    found: Any = sample
    for name in path:
        found = found.get(name)
        if found is None:
            return None
    return float(found)


def growth(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Of each series the median of a third that begins after a sixth, and of the last third; a
    series of which nothing is known in either is missing."""
    third = len(samples) // 3
    parts = {"early": samples[third // 2 : third // 2 + third], "late": samples[-third:]}
    found = {}
    for name, path in SERIES.items():
        known = {
            part: [v for sample in some if (v := _value(sample, path)) is not None]
            for part, some in parts.items()
        }
        if all(known.values()):
            found[name] = {part: median(values) for part, values in known.items()}
    return found


def grown(growth: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What grew by more than it may."""
    return [name for name, both in growth.items() if both["late"] > MOST_GROWTH * both["early"]]


def unseen(
    samples: Sequence[Sample], kills: int, spared: Sequence[str], *, looks: float, most_kills: float
) -> list[str]:
    """What the figures would not say if it had not been watched: ``looks`` and ``most_kills`` are
    how many there should have been."""
    found = []
    if len(samples) < 0.8 * looks:
        found.append(f"only {len(samples)} looks of {looks:.0f}")
    if kills < 0.5 * most_kills:
        found.append(f"only {kills} kills of {most_kills:.0f}")
    found += [f"the spared {who} died" for who in spared if who not in samples[-1]["spared"]]
    found += [f"nothing is known of {name}" for name in SERIES if name not in growth(samples)]
    return found


def latencies(answers: Sequence[Answer]) -> dict[str, float]:
    ordered = sorted(answer.answered_s - answer.asked_s for answer in answers)
    marks = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    found = {name: ordered[int(share * (len(ordered) - 1))] for name, share in marks.items()}
    return {**found, "max": ordered[-1]}


def table(result: Mapping[str, Any]) -> str:
    latency = result["latency_s"]
    lines = [
        "| minutes | requests | killed | sent again | lost | wrong pictures | double charges "
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
