"""The command line of the soak, its figures and its plot."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.faults.books import Books
from benchmarks.faults.client import Answer
from benchmarks.faults.command import HARMLESS
from benchmarks.faults.stage import staged
from benchmarks.soak.crowd import Crowd
from benchmarks.soak.kills import Killer
from benchmarks.soak.plot import plot
from benchmarks.soak.vitals import REST, Vitals

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "soak.json"
PICTURE = ROOT / "docs" / "images" / "soak.png"
LOAD = 0.7
#: From the first part to the last, of what should stay as it is.
MOST_GROWTH = 1.2
#: Small, so that every tier gives way all the time; and short-lived, so that what is kept for a
#: time has reached its height when the watching begins.
_SETTINGS: Mapping[str, Any] = {
    "host_bytes": 40 << 20,
    "disk_bytes": 48 << 20,
    "results_kept_s": 240.0,
    "reconcile_s": 60.0,
    "request_timeout_s": 120.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--load", type=float, default=LOAD, help="of what it can draw")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two looks")
    parser.add_argument("--kills", type=float, default=90.0, help="mean seconds between, and 60")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--plot", type=Path, default=PICTURE)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = soak(arguments)
    arguments.out.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    plot(result, arguments.plot)
    print(json.dumps(result, indent=1) if arguments.json else table(result))
    bad = [what for what in (*HARMLESS, "grown") if result[what]]
    if bad:
        raise SystemExit(f"not survived: {', '.join(bad)}")


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    with staged(**_SETTINGS) as stage:
        say("uploading …")
        crowd = Crowd(stage, arguments.seed)
        books = Books(stage)
        capacity = crowd.capacity_per_s(4 * stage.replicas)
        rate = arguments.load * capacity
        say(f"{capacity:.2f} pictures a second; {rate:.2f} are asked for")
        books.forgive()
        killer = Killer(stage, arguments.seed, arguments.kills, least_s=60.0)
        began_s = time.monotonic()
        with Vitals(stage, arguments.every, killer.spared) as vitals, killer:
            answers = crowd.ask_for(60 * arguments.minutes, rate, say)
        books.await_quiet()
        found = books.examine(answers)
    lost = [answer.said for answer in answers if answer.picture is None]
    grew = growth(vitals.samples)
    found["left"] += unseen(vitals.samples, killer, arguments)
    return {
        "minutes": arguments.minutes,
        "capacity_per_s": capacity,
        "rate_per_s": rate,
        "requests": len(answers),
        "lost": len(lost),
        "said": sorted(set(lost)),
        **found,
        "sent_again": sum(answer.attempts > 1 for answer in answers),
        "latency_s": latencies(answers),
        "growth": grew,
        "grown": [n for n, both in grew.items() if both["late"] > MOST_GROWTH * both["early"]],
        "kills": killer.deeds,
        "samples": vitals.samples,
        "answers": [
            [round(a.asked_s - began_s, 2), round(a.answered_s - a.asked_s, 3)] for a in answers
        ],
    }


def unseen(
    samples: Sequence[Mapping[str, Any]], killer: Killer, arguments: argparse.Namespace
) -> list[str]:
    """What the figures would not say if it had not been watched."""
    found = []
    if len(samples) < 0.8 * 60 * arguments.minutes / arguments.every:
        found.append(f"only {len(samples)} looks")
    if len(killer.deeds) < 0.5 * 60 * arguments.minutes / (60 + arguments.kills):
        found.append(f"only {len(killer.deeds)} kills")
    found += [f"the spared {who} died" for who in killer.spared if who not in samples[-1]["spared"]]
    return found


def latencies(answers: Sequence[Answer]) -> dict[str, float]:
    ordered = sorted(answer.answered_s - answer.asked_s for answer in answers)
    marks = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    found = {name: ordered[int(share * (len(ordered) - 1))] for name, share in marks.items()}
    return {**found, "max": ordered[-1]}


def growth(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The median of the last third, and of a third that begins after a sixth: of memory and of
    descriptors of the two that were spared, of memory of what is hardly killed, of files."""
    third = len(samples) // 3
    early, late = samples[third // 2 : third // 2 + third], samples[-third:]
    found: dict[str, dict[str, float]] = {}

    def series(name: str, of: Any) -> None:
        first = [value for sample in early if (value := of(sample)) is not None]
        last = [value for sample in late if (value := of(sample)) is not None]
        if first and last:
            found[name] = {"early": median(first), "late": median(last)}

    for who in ("gateway", "replica"):
        for what in ("bytes", "descriptors"):
            series(f"{who} {what}", lambda s, a=who, b=what: s["spared"].get(a, {}).get(b))
    for part in ("serve", REST):
        series(f"{part} bytes", lambda s, a=part: s["bytes"].get(a))
    for place in samples[0]["files"]:
        series(f"{place} files", lambda s, a=place: s["files"].get(a))
    return found


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
