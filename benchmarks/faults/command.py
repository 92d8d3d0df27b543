"""The command line of the faults, and the looking at the books after each."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from benchmarks.faults.client import SEEDS, Answer, Load, ask
from benchmarks.faults.injected import FAULTS, Fault, Harm
from benchmarks.faults.stage import Stage, staged

RESULT = Path(__file__).parents[1] / "results" / "faults.json"
_QUIET_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks faults")
    parser.add_argument("--only", default="", help="faults, comma-separated")
    parser.add_argument("--list", action="store_true", help="the faults there are")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    only = [name for name in arguments.only.split(",") if name]
    unknown = {*only} - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; see --list")
    chosen = [fault for fault in FAULTS if not only or fault.name in only]
    if arguments.list:
        print("\n".join(f"{fault.name:20} {fault.expected}" for fault in chosen))
        return
    rows = []
    with staged() as stage:
        golden = {seed: ask(stage, seed).picture for seed in SEEDS}
        charged = len(golden)
        for fault in chosen:
            print(f"{fault.name} …", file=sys.stderr, flush=True)
            row, charged = suffer(stage, fault, golden, charged)
            print(f"  {json.dumps(row)}", file=sys.stderr, flush=True)
            rows.append(row)
    result = {"faults": rows}
    if not only or arguments.out != RESULT:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else table(result))
    bad = [row["fault"] for row in rows if row["lost"] or row["wrong"] or row["left"]]
    if bad or any(row["double_charges"] for row in rows):
        raise SystemExit(f"not survived: {', '.join(bad)}")


def suffer(
    stage: Stage, fault: Fault, golden: Mapping[int, str | None], charged: int
) -> tuple[dict[str, Any], int]:
    """One fault under load. ``charged`` is what the ledger should hold before; returned with
    what it should hold afterwards."""
    harm = Harm(stage)
    with Load(stage) as load:
        load.await_more(4)
        harmed_s = time.monotonic()
        fault.inject(harm)
        load.await_more(6, since_s=time.monotonic())
    whole_s = _whole_again(stage) - harmed_s
    answers = [*load.answers, *harm.asked]
    after = [a.answered_s for a in answers if a.asked_s >= harmed_s and a.picture is not None]
    drawn = sum(answer.picture is not None for answer in answers) + harm.drawn
    found = _ledger(stage)
    row = {
        "fault": fault.name,
        "expected": fault.expected,
        "seen": harm.seen,
        "requests": len(answers),
        "lost": sum(answer.picture is None for answer in answers),
        "said": sorted({answer.said for answer in answers if answer.picture is None}),
        "wrong": _wrong(load.answers, golden),
        "double_charges": max(0, found - charged - drawn),
        "missing_charges": max(0, charged + drawn - found),
        "recovery_s": min(after, default=float("nan")) - harmed_s,
        "longest_s": max(answer.answered_s - answer.asked_s for answer in answers),
        "whole_again_s": whole_s,
        "left": _left_behind(stage),
    }
    return row, found


def _wrong(answers: Sequence[Answer], golden: Mapping[int, str | None]) -> int:
    return sum(a.picture not in (None, golden[a.seed]) for a in answers)


def _whole_again(stage: Stage) -> float:
    """When every replica was up and idle and nothing waited; at the latest after a while."""
    deadline = time.monotonic() + _QUIET_S
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError, KeyError, ValueError):
            status = stage.status()
            idle = not status["waiting"] and not any(r["running"] for r in status["replicas"])
            if idle and len(stage.up()) >= stage.settings.replicas:
                break
        time.sleep(0.2)
    return time.monotonic()


def _ledger(stage: Stage) -> int:
    """Pictures that were charged, once settling has come to rest."""
    meter = stage.backends().meter
    count, seen = -1, int(meter.totals(stage.tenant_id)["pictures"])
    deadline = time.monotonic() + 15.0
    while count != seen and time.monotonic() < deadline:
        time.sleep(1.0)
        count, seen = seen, int(meter.totals(stage.tenant_id)["pictures"])
    return seen


def _left_behind(stage: Stage) -> list[str]:
    """What should not be there once everything is at rest."""
    left = []
    for tier in stage.tiers():
        try:
            tier.check_integrity()
        except AssertionError as error:
            left.append(f"{tier.name} tier: {error}")
    try:
        stage.backends().meter.check_integrity()
    except AssertionError as error:
        left.append(f"books: {error}")
    status = stage.status()
    if status["waiting"] or any(replica["running"] for replica in status["replicas"]):
        left.append("requests that nobody waits for")
    return left


def table(result: Mapping[str, Any]) -> str:
    lines = [
        "| fault | expected | seen | requests | lost | wrong pictures | double charges "
        "| first answer, s | longest request, s | whole again, s |",
        "|" + "---|" * 3 + "---:|" * 7,
    ]
    lines += [
        f"| {row['fault']} | {row['expected']} | {row['seen'] or 'so'} | {row['requests']} "
        f"| {row['lost']} | {row['wrong']} | {row['double_charges']} | {row['recovery_s']:.1f} "
        f"| {row['longest_s']:.1f} | {row['whole_again_s']:.1f} |"
        for row in result["faults"]
    ]
    return "\n".join(lines)
