"""The replay benchmark: traces, policies, and the router's results."""

from __future__ import annotations

import csv
import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from assets.rendezvous import home
from benchmarks.replay.bound import bound
from benchmarks.replay.caches import belady_misses, lora_uses, lru_misses, tier_misses
from benchmarks.replay.figures import describe, figures
from benchmarks.replay.generator import generate
from benchmarks.replay.neighbour import flood_of_loras, loud_neighbour
from benchmarks.replay.replica import Hardware
from benchmarks.replay.simulation import OURS, POLICIES, replay
from benchmarks.replay.trace import (
    BASE_MODEL,
    BadTrace,
    TraceRequest,
    at_load,
    checkpoint_key,
    is_checkpoint,
    read_trace,
    write_trace,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trace() -> list[TraceRequest]:
    return generate(6_000, seed=0)


def test_the_same_seed_gives_the_same_trace(trace: list[TraceRequest]) -> None:
    assert generate(6_000, seed=0) == trace
    assert generate(6_000, seed=1) != trace


def test_the_generated_trace_has_the_published_figures() -> None:
    measured = describe(generate(100_000, seed=0))
    assert measured["requests with LoRAs"] == pytest.approx(0.22, abs=0.03)
    assert measured["of those, with one"] == pytest.approx(0.93, abs=0.03)
    assert measured["top 5 checkpoints"] == pytest.approx(0.70, abs=0.05)
    assert measured["LoRAs of one tenant only"] == pytest.approx(0.83, abs=0.05)
    assert measured["repeats the tenant's last assets"] == pytest.approx(0.68, abs=0.03)
    assert measured["squared variation of the gaps"] == pytest.approx(144, rel=0.25)
    assert measured["checkpoint misses, 8 replicas at random"] == pytest.approx(0.62, abs=0.04)


def test_a_trace_file_round_trips(trace: list[TraceRequest], tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    write_trace(path, trace[:100])
    again = read_trace(path)
    assert [r.assets for r in again] == [r.assets for r in trace[:100]]
    assert [r.arrival_s for r in again] == pytest.approx([r.arrival_s for r in trace[:100]])
    assert [r.loras for r in again] == [r.loras for r in trace[:100]]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("loras", "l1", "line 3"),
        ("loras", '[{"id": "l"}]', "scale"),
        ("steps", "0", "positive"),
        ("width", "x", "line 3"),
        ("arrival_s", "nan", "arrival_s"),
        ("arrival_s", "-1", "arrival_s"),
        ("arrival_s", "0", "lower than on the line before"),
        ("tenant", "", "tenant is empty"),
    ],
)
def test_an_invalid_line_is_reported(
    trace: list[TraceRequest], tmp_path: Path, column: str, value: str, message: str
) -> None:
    path = tmp_path / "trace.csv"
    write_trace(path, trace[1:4])
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    rows[1][column] = value
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(BadTrace, match=message):
        read_trace(path)


def test_at_load_gives_the_requested_load(trace: list[TraceRequest]) -> None:
    stream = at_load(trace, 0.7, 8, 2.0)
    work_s = sum(r.cost for r in stream) * 2.0
    assert work_s / (8 * stream[-1].arrival_s) == pytest.approx(0.7)


@pytest.mark.parametrize("policy", [OURS, *POLICIES])
def test_every_request_runs_once_and_the_counters_agree(
    policy: str, trace: list[TraceRequest]
) -> None:
    hardware = Hardware(replicas=4)
    stream = at_load(trace[:1_500], 0.6, 4, hardware.picture_s)
    outcome = replay(stream, policy, hardware)
    least_s = [hardware.swap_s + r.cost * hardware.picture_s for r in stream]
    for latency_s, generation_s in zip(outcome.latency_s, least_s, strict=True):
        assert latency_s >= generation_s - 1e-6
    assert sum(outcome.busy_s) == pytest.approx(sum(least_s))
    assert outcome.lora_uses.total() == len(lora_uses(stream))
    # Without file tiers, every load is from the store.
    loads = outcome.checkpoint_loads * hardware.checkpoint_bytes
    assert outcome.store_bytes == loads + outcome.lora_loads.total() * hardware.lora_bytes
    assert replay(stream, policy, hardware).latency_s == outcome.latency_s


def test_file_tiers_reduce_store_reads(trace: list[TraceRequest]) -> None:
    stream = at_load(trace[:2_000], 0.5, 4, 2.86)
    bare = replay(stream, OURS, Hardware(replicas=4))
    tiered = replay(stream, OURS, Hardware(replicas=4, host_bytes=40 * 10**9, disk_bytes=10**12))
    distinct = {key for r in stream for key in r.assets}
    assert tiered.store_bytes < bare.store_bytes
    assert tiered.store_bytes == sum((5 if is_checkpoint(key) else 1) * 10**9 for key in distinct)


def test_results_do_not_depend_on_asset_names(trace: list[TraceRequest]) -> None:
    """A LoRA may have a checkpoint's name."""
    stream = at_load(trace[:2_000], 0.6, 4, 2.86)
    names = sorted({r.checkpoint for r in stream} | {n for r in stream for n, _ in r.loras})
    replicas = [f"r{index}" for index in range(4)]

    def preferred(name: str) -> str:
        return home(checkpoint_key(name), replicas)

    # They sort alike and have the same preferred replicas: ties break alike.
    plain = {
        name: next(
            other
            for salt in itertools.count()
            if preferred(other := f"{index:05d}-{salt}") == preferred(name)
        )
        for index, name in enumerate(names)
    }
    renamed = [
        replace(r, checkpoint=plain[r.checkpoint], loras=tuple((plain[n], w) for n, w in r.loras))
        for r in stream
    ]
    alike = [replace(r, loras=tuple((r.checkpoint, w) for _, w in r.loras)) for r in stream]
    hardware = Hardware(replicas=4)
    before, after = (replay(each, OURS, hardware) for each in (stream, renamed))
    assert after.checkpoint_loads == before.checkpoint_loads > 0
    assert after.lora_loads == before.lora_loads
    same = replay(alike, OURS, hardware)
    loads = same.checkpoint_loads * hardware.checkpoint_bytes
    assert same.store_bytes == loads + same.lora_loads.total() * hardware.lora_bytes


def test_a_line_without_a_checkpoint_uses_the_base_model(
    trace: list[TraceRequest], tmp_path: Path
) -> None:
    path = tmp_path / "trace.csv"
    write_trace(path, [replace(r, checkpoint="") for r in trace[:3]])
    read = read_trace(path)
    assert {r.checkpoint for r in read} == {BASE_MODEL}
    assert describe(read)["different checkpoints"] == 1


def test_affinity_beats_the_other_policies(trace: list[TraceRequest]) -> None:
    """The platform's claims on a short trace."""
    hardware = Hardware()
    stream = at_load(trace, 0.7, 8, hardware.picture_s)
    results = {
        policy: figures(replay(stream, policy, hardware), stream)
        for policy in (OURS, "random", "multiplexed", "bounded hash")
    }
    ours = results[OURS]
    assert ours["checkpoint_misses"] <= 0.25 * results["random"]["checkpoint_misses"]
    assert ours["checkpoint_misses"] <= 0.5 * results["multiplexed"]["checkpoint_misses"]
    # A single burst determines this trace's p99.
    assert ours["p99_s"] <= 0.7 * results["bounded hash"]["p99_s"]
    assert ours["imbalance"] <= 1.3
    best = bound(stream, hardware)
    assert best["checkpoint_misses"] <= ours["checkpoint_misses"]
    assert best["p99_s"] <= ours["p99_s"]


def test_tier_misses_are_between_belady_and_lru(trace: list[TraceRequest]) -> None:
    uses = lora_uses(trace)
    for slots in (8, 16, 32):
        best, ours = belady_misses(uses, slots), tier_misses(uses, slots)
        assert best <= ours <= 1.02 * lru_misses(uses, slots)


def test_other_tenants_are_protected_from_a_noisy_one(trace: list[TraceRequest]) -> None:
    hardware = Hardware()
    stream = at_load(trace[:4_000], 0.3, 8, hardware.picture_s)
    row = loud_neighbour(stream, hardware, 20, [OURS])[0]
    assert row["ratio"] <= 1.3
    assert row["victims_failed_beside"] <= 1.05 * row["victims_failed_alone"]
    flood = flood_of_loras(stream, Hardware(host_bytes=64 * 10**9))
    assert flood["node_beside"] >= flood["node_alone"] - 0.05


def test_the_command_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "benchmarks", "replay", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    path = tmp_path / "trace.csv"
    assert "400 requests" in run("--requests", "400", "--write", str(path))
    printed = run("--trace", str(path), "--policies", "--only", "ours,random", "--loads", "0.4",
                  "--json")  # fmt: skip
    rows = json.loads(printed)["policies"]
    assert [row["policy"] for row in rows] == ["ours", "random", "clairvoyant bound"]
    assert not any(math.isnan(row["p99_s"]) for row in rows)
    path.write_text("tenant\nx\n")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "replay", "--trace", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "missing columns" in done.stderr
    assert "Traceback" not in done.stderr
