"""Scaling cases on Ray's autoscaler with fake nodes.

Set ``AO_TEST_IDLE_S=30`` for realistic idle times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving.cluster.autoscaled import ROOT, autoscaled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

IDLE_S = float(os.environ.get("AO_TEST_IDLE_S", "5"))
NODE_IDLE_S = 5.0


def run(case: str, folder: Path, idle_s: float = IDLE_S) -> dict[str, Any]:
    with autoscaled(NODE_IDLE_S) as cluster:
        command = [sys.executable, "-m", "tests.serving.cluster.scaling_script"]
        done = subprocess.run(
            [*command, cluster.address, str(folder / "data"), case, str(idle_s)],
            cwd=ROOT,
            env=dict(cluster.environment),
            capture_output=True,
            text=True,
            timeout=500,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(table(case, found))
    return found


def times(found: dict[str, Any], what: str) -> dict[str, float]:
    return {e["replica"]: e["at_s"] for e in found["events"] if e["what"] == what}


def table(case: str, found: dict[str, Any]) -> str:
    """The event log in seconds since the last request, or first event."""
    last = max(found["submitted_s"], default=found["events"][0]["at_s"])
    lines = [f"{case}:"]
    for event in found["events"]:
        details = event["details"].get("seconds", "")
        parts = ", ".join(f"{k} {v:.1f}" for k, v in details.items()) if details else ""
        lines.append(f"{event['at_s'] - last:8.2f} s {event['what']:9} {event['replica']} {parts}")
    return "\n".join(lines)


def assert_idled_out(found: dict[str, Any]) -> None:
    """Every replica is released, none before its idle time; then its node is removed."""
    ready, released = times(found, "ready"), times(found, "released")
    assert ready.keys() == released.keys()
    # "ready" is noted up to an interval late.
    assert all(released[name] - ready[name] >= IDLE_S - 1.0 for name in ready)
    assert found["nodes_left"] == 0


def test_ten_requests_start_four_replicas_which_idle_out(tmp_path: Path) -> None:
    found = run("ten at once", tmp_path)
    ordered = times(found, "ordered")
    assert len(ordered) == 4
    tenth = max(found["submitted_s"])
    assert max(ordered.values()) - tenth <= 1.0
    assert set(found["replicas"]) <= ordered.keys()
    assert times(found, "ready").keys() == ordered.keys()
    assert_idled_out(found)


def test_a_second_replica_starts_when_the_backlog_exceeds_queue_size(tmp_path: Path) -> None:
    found = run("two and two", tmp_path)
    assert found["waiting with one GPU"] == 1  # the second waits for the GPU
    assert found["ordered with two requests"] == 1
    assert found["queue with four"] == 3
    assert len(times(found, "ordered")) == 2
    assert_idled_out(found)


def test_a_tenant_that_moves_to_another_gpu_pays_one_cold_start(tmp_path: Path) -> None:
    found = run("two kinds", tmp_path, idle_s=40.0)
    starts = times(found, "ready")
    assert sorted(starts) == ["a10g-0", "h100-0"]  # one shared, one for the move
    generated = {
        tenant: [a for a in found["answers"] if a["tenant"] == tenant]
        for tenant in ("moves", "stays")
    }
    assert [a["replica"] for a in generated["moves"]] == ["a10g-0"] * 2 + ["h100-0"] * 3
    assert {a["replica"] for a in generated["stays"]} == {"a10g-0"}
    # Compared with the tenant's warm requests.
    cold, *warm = [a["seconds"] for a in generated["moves"][2:]]
    assert cold > 4 * max(warm)
    for answer in found["answers"]:
        print(f"{answer['tenant']:6} on {answer['replica']:7} {answer['seconds']:6.2f} s")
