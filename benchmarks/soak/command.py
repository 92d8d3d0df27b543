"""The soak's command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.document import Document
from benchmarks.faults.command import HARMLESS
from benchmarks.faults.harness import staged
from benchmarks.faults.invariants import Invariants
from benchmarks.soak.figures import grown, growth, latencies, table, unseen
from benchmarks.soak.kills import Killer
from benchmarks.soak.plot import plot
from benchmarks.soak.resource_usage import ResourceUsage
from benchmarks.soak.workload import Workload

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "soak.json"
PLOT = ROOT / "docs" / "images" / "soak.png"
LOAD = 0.7
#: Between two kills, to recover.
LEAST_S = 60.0
#: Small tiers evict constantly; short retention makes stored results stable before the first
#: samples that count.
_SETTINGS: Document = {
    "host_bytes": 40 << 20,
    "disk_bytes": 48 << 20,
    "results_kept_s": 240.0,
    "reconcile_s": 60.0,
    "request_timeout_s": 120.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--load", type=float, default=LOAD, help="share of the measured capacity")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two samples")
    parser.add_argument(
        "--kills", type=float, default=90.0, help="mean seconds between two kills, added to 60"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--plot", type=Path, default=PLOT)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = soak(arguments)
    arguments.out.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    plot(result, arguments.plot)
    print(json.dumps(result, indent=1) if arguments.json else table(result))
    bad = [name for name in (*HARMLESS, "grown") if result[name]]
    if bad:
        raise SystemExit(f"not survived: {', '.join(bad)}")


def soak(arguments: argparse.Namespace) -> Document:
    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    with staged(**_SETTINGS) as harness:
        say("uploading …")
        workload = Workload(harness, arguments.seed)
        invariants = Invariants(harness)
        capacity = workload.capacity_per_s(4 * harness.replicas)
        rate = arguments.load * capacity
        say(f"capacity: {capacity:.2f} images/s; offered: {rate:.2f} images/s")
        invariants.forgive()
        killer = Killer(harness, arguments.seed, arguments.kills, LEAST_S)
        began_s = time.monotonic()
        with ResourceUsage(harness, arguments.every, killer.spared) as resource_usage, killer:
            answers = workload.ask_for(60 * arguments.minutes, rate, say)
        invariants.await_quiet()
        findings = invariants.examine(answers)
    lost = [answer.said for answer in answers if answer.image is None]
    grew = growth(resource_usage.samples)
    findings["left"] += unseen(
        resource_usage.samples, len(killer.deeds), [*killer.spared],
        looks=60 * arguments.minutes / arguments.every,
        most_kills=60 * arguments.minutes / (LEAST_S + arguments.kills),
    )  # fmt: skip
    return {
        "minutes": arguments.minutes,
        "capacity_per_s": capacity,
        "rate_per_s": rate,
        "requests": len(answers),
        "lost": len(lost),
        "said": sorted(set(lost)),
        **findings,
        "sent_again": sum(answer.attempts > 1 for answer in answers),
        "latency_s": latencies(answers),
        "growth": grew,
        "grown": grown(grew),
        "kills": killer.deeds,
        "samples": resource_usage.samples,
        "answers": [
            [round(a.asked_s - began_s, 2), round(a.answered_s - a.asked_s, 3)] for a in answers
        ],
    }
