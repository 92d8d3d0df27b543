"""The command line of the replay."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.document import Document
from benchmarks.replay.bound import bound
from benchmarks.replay.caches import (
    belady_misses,
    lora_uses,
    lru_misses,
    run_tier,
    tier_misses,
    trained_prefetcher,
    visits_misses,
)
from benchmarks.replay.figures import PUBLISHED, describe, figures, plot, table, written
from benchmarks.replay.generator import Population, generate
from benchmarks.replay.live import play
from benchmarks.replay.neighbour import STREAMS, flood_of_loras, loud_neighbour
from benchmarks.replay.replica import Hardware
from benchmarks.replay.report import report
from benchmarks.replay.simulation import AT_ONCE, OURS, POLICIES, replay
from benchmarks.replay.streams import HELD_OUT, TUNED_ON
from benchmarks.replay.trace import (
    BASE_MODEL,
    BadTrace,
    TraceRequest,
    at_load,
    read_trace,
    write_trace,
)

KEPT = Path(__file__).parents[1] / "results" / "replay.json"


def main() -> None:
    arguments = _parse()
    if arguments.report:
        print("\n\n".join(report(json.loads(KEPT.read_text()))))
        return
    try:
        trace = _trace(arguments)
    except (BadTrace, OSError) as error:
        raise SystemExit(f"replay: {error}") from None
    if arguments.write is not None:
        write_trace(arguments.write, trace)
        print(f"{len(trace)} requests in {arguments.write}")
    elif arguments.describe:
        _describe(trace)
    elif arguments.live:
        play(trace, arguments.live, arguments.key, arguments.speed, arguments.json)
    else:
        hardware = _hardware(arguments)
        parts = {
            "policies": _policies, "caches": _caches, "neighbour": _neighbour, "scale": _scale,
        }  # fmt: skip
        chosen = [name for name in parts if getattr(arguments, name)] or list(parts)
        result: Document = {
            "requests": len(trace), "seed": arguments.seed, "hardware": asdict(hardware),
        }  # fmt: skip
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        if chosen != list(parts):
            if arguments.save and any(kept.get(name) != what for name, what in result.items()):
                raise SystemExit(
                    f"replay: {KEPT.name} was saved with another trace, seed or hardware; "
                    "run all parts with --save"
                )
            result = {**kept, **result}
        for name in chosen:
            result[name] = parts[name](trace, hardware, arguments)
        if arguments.json:
            print(json.dumps(result, indent=1))
        if arguments.save:
            KEPT.write_text(json.dumps(result, indent=1) + "\n")
            if "policies" in chosen:
                plot(result["policies"], Path("docs/images/replay.png"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks replay",
        description="Replay a request trace. Runs all parts unless some are selected.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    stream = parser.add_argument_group("trace")
    stream.add_argument("--trace", type=Path, help="a CSV file (see benchmarks/replay/trace.py)")
    stream.add_argument(
        "--requests", type=int, default=100_000, help="the number of requests to generate"
    )
    stream.add_argument("--seed", type=int, default=0, help="the generator's seed")
    stream.add_argument("--write", type=Path, help="write the trace as CSV and exit")
    stream.add_argument(
        "--describe", action="store_true", help="compare the trace with the published figures"
    )
    parts = parser.add_argument_group("parts")
    parts.add_argument("--policies", action="store_true", help="compare all policies at each load")
    parts.add_argument(
        "--caches", action="store_true", help="compare the cache misses with LRU and Belady"
    )
    parts.add_argument("--neighbour", action="store_true", help="one noisy tenant and its victims")
    parts.add_argument("--scale", action="store_true", help="time and memory of the replay itself")
    parser.add_argument(
        "--loads",
        default="0.3,0.5,0.7,0.9",
        help="offered loads, as shares of the capacity without any loading",
    )
    parser.add_argument("--only", default="", help="the policies to run, comma-separated")
    parser.add_argument(
        "--noisy-load",
        type=float,
        default=0.3,
        help="the load before one tenant multiplies its own",
    )
    parser.add_argument(
        "--most", type=int, default=1_000_000, help="the most requests in the scale part"
    )
    live = parser.add_argument_group("running platform")
    live.add_argument("--live", metavar="URL", help="send the trace to this platform")
    live.add_argument("--key", default="", help="an API key of the platform")
    live.add_argument("--speed", type=float, default=1.0, help="trace seconds per second")
    parser.add_argument("--report", action="store_true", help="print the saved results as tables")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save", action="store_true", help="save the results in the repository")
    machine = parser.add_argument_group("simulated hardware")
    for field in fields(Hardware):
        default: Any = field.default
        name = "--" + field.name.replace("_", "-")
        machine.add_argument(name, type=type(default), default=default, help=" ")
    return parser.parse_args()


def _trace(arguments: argparse.Namespace) -> list[TraceRequest]:
    if arguments.trace is not None:
        trace = read_trace(arguments.trace)
        base_model_count = sum(request.checkpoint == BASE_MODEL for request in trace)
        if base_model_count:
            _log(f"{base_model_count} of {len(trace)} lines use the base model: no checkpoint")
        return trace
    return generate(arguments.requests, arguments.seed)


def _hardware(arguments: argparse.Namespace) -> Hardware:
    values = {field.name: getattr(arguments, field.name) for field in fields(Hardware)}
    return Hardware(**values)


def _describe(trace: Sequence[TraceRequest]) -> None:
    print("| | published | this stream |\n|---|---|---|")
    for name, value in describe(trace).items():
        print(f"| {name} | {PUBLISHED[name]:g} | {value:.3g} |")


def _policies(
    trace: list[TraceRequest], hardware: Hardware, arguments: argparse.Namespace
) -> list[Document]:
    only = [name for name in arguments.only.split(",") if name] or [OURS, AT_ONCE, *POLICIES]
    rows: list[Document] = []
    for load in [float(text) for text in arguments.loads.split(",")]:
        stream = at_load(trace, load, hardware.replicas, hardware.picture_s)
        load_rows = []
        for policy in only:
            _log(f"load {load}: {policy} …")
            load_rows.append(figures(replay(stream, policy, hardware, arguments.seed), stream))
        load_rows.append(bound(stream, hardware))
        rows += [{"load": load, **row} for row in load_rows]
        if not arguments.json:
            print(f"\nOffered load {load}\n\n{table(load_rows)}\n", flush=True)
    return rows


def _caches(
    trace: list[TraceRequest], hardware: Hardware, arguments: argparse.Namespace
) -> list[Document]:
    rows = []
    uses = lora_uses(trace)
    for slots in (32, 128):
        best = belady_misses(uses, slots)
        lru = lru_misses(uses, slots)
        ours = tier_misses(uses, slots)
        row = {"slots": slots, "uses": len(uses), "belady": best, "lru": lru, "ours": ours}
        rows.append(row)
        if not arguments.json:
            print(
                f"{slots:4} slots, {len(uses)} uses: misses of Belady {best}, LRU {lru} "
                f"({lru / best:.3f} x), ours {ours} ({ours / best:.3f} x Belady, "
                f"{ours / lru:.3f} x LRU)"
            )
    rows += _streams(arguments)
    prefetcher = trained_prefetcher(trace, hardware.lora_bytes)
    if not arguments.json:
        share = prefetcher.came_true / max(1, prefetcher.guessed)
        print(f"{prefetcher.guessed} prefetches at a tenant's return, {share:.2f} of them used")
    return rows


def _streams(arguments: argparse.Namespace) -> list[Document]:
    rows = []
    for held_out, streams in ((False, TUNED_ON), (True, HELD_OUT)):
        for name, make in streams.items():
            for slots in (32, 128):
                uses = make(slots)
                tier = run_tier(uses, slots)
                lru = lru_misses(uses, slots)
                row: Document = {
                    "stream": name, "held_out": held_out, "slots": slots, "uses": len(uses),
                    "belady": belady_misses(uses, slots), "lru": lru,
                    "visits": visits_misses(uses, slots), "ours": tier.misses,
                    "changes": tier.changes, "recency_share": tier.recency_share,
                }  # fmt: skip
                rows.append(row)
                if not arguments.json:
                    print(
                        f"{name:30} {slots:4} slots: misses of Belady {row['belady']}, LRU "
                        f"{row['lru']}, visits {row['visits']}, ours {tier.misses} "
                        f"({tier.misses / lru:.3f} x LRU); {tier.changes} changes",
                        flush=True,
                    )
    return rows


def _neighbour(
    trace: list[TraceRequest], hardware: Hardware, arguments: argparse.Namespace
) -> Document:
    loud = []
    for name, (make, held_out) in STREAMS.items():
        _log(f"one tenant x 50 in {name} …")
        policies = (OURS, "least loaded") if make is None else (OURS,)
        among = trace[:20_000] if make is None else make()
        stream = at_load(among, arguments.noisy_load, hardware.replicas, hardware.picture_s)
        rows = loud_neighbour(stream, hardware, 50, policies)
        loud += [{"stream": name, "held_out": held_out, **row} for row in rows]
    stream = at_load(trace[:20_000], arguments.noisy_load, hardware.replicas, hardware.picture_s)
    node = replace(hardware, host_bytes=64 * hardware.lora_bytes)
    flood = flood_of_loras(stream, node)
    if not arguments.json:
        for row in loud:
            print(
                f"{row['stream']}, {row['policy']}: {row['tenant']} x {row['times']}; p95 of "
                f"the others {written(row['victims_p95_alone_s'])} s without it, "
                f"{written(row['victims_p95_beside_s'])} s with it "
                f"({written(row['ratio'], '{:.2f}')} x); of their {row['victims']} failed "
                f"{row['victims_failed_alone']} without it, {row['victims_failed_beside']} with it"
            )
        for tier in ("device", "node"):
            print(
                f"LoRA hits of the others, {tier}: {flood[f'{tier}_alone']:.3f} alone, "
                f"{flood[f'{tier}_beside']:.3f} with a flood that makes half of all LoRA uses"
            )
    return {"load": arguments.noisy_load, "loud": loud, "flood": flood}


def _scale(
    trace: list[TraceRequest], hardware: Hardware, arguments: argparse.Namespace
) -> list[Document]:
    """Measure in this process, smallest first: memory is the peak so far."""
    most = arguments.most
    plan = [(OURS, 8, 10_000), (OURS, 8, 100_000)]
    plan += [(OURS, 1000, count) for count in (10_000, 100_000)]
    plan += [(policy, 1000, 100_000) for policy in POLICIES]
    plan += [(OURS, 1000, most)]
    rows = []
    for policy, replicas, count in plan:
        count = min(count, most)
        _log(f"{count} requests, {replicas} replicas: {policy} …")
        people = Population()
        factor = max(1, replicas // 8)
        people = replace(people, sessions=people.sessions * factor, tenants=people.tenants * factor)
        scaled = replace(hardware, replicas=replicas)
        stream = at_load(generate(count, 0, people), 0.7, replicas, scaled.picture_s)
        started = time.perf_counter()
        outcome = replay(stream, policy, scaled)
        spent_s = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        result = figures(outcome, stream)
        rows.append(
            {
                "policy": policy, "replicas": replicas, "requests": count, "seconds": spent_s,
                "us_a_request": spent_s / count * 1e6, "peak_bytes": peak,
                "checkpoint_misses": result["checkpoint_misses"], "p99_s": result["p99_s"],
            }
        )  # fmt: skip
        if not arguments.json:
            row = rows[-1]
            print(
                f"{policy:16} {replicas:5} replicas {count:8} requests: {spent_s:7.1f} s, "
                f"{row['us_a_request']:6.0f} us each, {peak >> 20} MiB at most; checkpoint misses "
                f"{row['checkpoint_misses']:.3f}, p99 {row['p99_s']:.1f} s",
                flush=True,
            )
    return rows


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
