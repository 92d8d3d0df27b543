"""The faults benchmark's command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import httpx2

from benchmarks.document import Document
from benchmarks.faults.client import Load, known
from benchmarks.faults.fault import Fault, Harm
from benchmarks.faults.faults import FAULTS
from benchmarks.faults.harness import Skipped, staged
from benchmarks.faults.invariants import Invariants

RESULT = Path(__file__).parents[1] / "results" / "faults.json"
#: Figures that must be zero or empty.
HARMLESS = ("lost", "wrong", "double_charges", "missing_charges", "left")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks faults")
    parser.add_argument("--only", default="", help="faults, comma-separated")
    parser.add_argument("--list", action="store_true", help="list the faults and exit")
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
    rows = inject(chosen)
    result = {"faults": [rows[fault.name] for fault in chosen]}
    if not only or arguments.out != RESULT:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else table(result))
    bad = [name for name, row in rows.items() if any(row.get(figure) for figure in HARMLESS)]
    if bad:
        raise SystemExit(f"not survived: {', '.join(bad)}")


def inject(chosen: Sequence[Fault]) -> dict[str, Document]:
    """Inject the faults; return rows by name. Faults of one place share a platform."""
    rows: dict[str, Document] = {}
    for place, group in groupby(sorted(chosen, key=lambda f: f.place), lambda f: f.place):
        faults = list(group)
        try:
            with staged(place) as harness:
                invariants = Invariants(harness)
                for fault in faults:
                    print(f"{fault.name} …", file=sys.stderr, flush=True)
                    rows[fault.name] = _row(fault, invariants)
                    print(f"  {json.dumps(rows[fault.name])}", file=sys.stderr, flush=True)
        except Skipped as reason:
            rows |= {f.name: {"fault": f.name, "skipped": str(reason)} for f in faults}
    return rows


def _row(fault: Fault, invariants: Invariants) -> Document:
    try:
        return suffer(fault, invariants)
    except Skipped as reason:
        invariants.forgive()
        return {"fault": fault.name, "skipped": str(reason)}


def suffer(fault: Fault, invariants: Invariants) -> Document:
    """Inject one fault under load; return a row."""
    harm = Harm(invariants.harness)
    with Load(known(invariants.harness.endpoint)) as load:
        load.await_more(4)
        harmed_s = time.monotonic()
        try:
            fault.inject(harm)
            load.await_more(6, since_s=time.monotonic())
        except (httpx2.HTTPError, TimeoutError, LookupError, ValueError) as error:
            harm.lost.append(repr(error))
    harm.lost += map(repr, load.errors)
    whole_s = invariants.await_quiet() - harmed_s
    answers = [*load.answers, *harm.asked]
    after = [a.answered_s for a in answers if a.asked_s >= harmed_s and a.image is not None]
    refused = [answer.said for answer in answers if answer.image is None]
    return {
        "fault": fault.name,
        "expected": fault.expected,
        "seen": harm.seen,
        "requests": len(answers),
        "lost": len(refused) + len(harm.lost),
        "said": sorted({*refused, *harm.lost}),
        "recovery_s": min(after, default=float("nan")) - harmed_s,
        "longest_s": max(answer.answered_s - answer.asked_s for answer in answers),
        "whole_again_s": whole_s,
        **invariants.examine(answers),
    }


def table(result: Document) -> str:
    lines = [
        "| fault | expected | seen | requests | lost | wrong images | double charges "
        "| missing charges | first answer, s | longest request, s | whole again, s |",
        "|" + "---|" * 3 + "---:|" * 8,
    ]
    for row in result["faults"]:
        if "skipped" in row:
            lines.append(f"| {row['fault']} | | skipped: {row['skipped']} |" + " |" * 8)
            continue
        lines.append(
            f"| {row['fault']} | {row['expected']} | {row['seen'] or 'as expected'} "
            f"| {row['requests']} "
            f"| {row['lost']} | {row['wrong']} | {row['double_charges']} "
            f"| {row['missing_charges']} | {row['recovery_s']:.1f} | {row['longest_s']:.1f} "
            f"| {row['whole_again_s']:.1f} |"
        )
    return "\n".join(lines)
