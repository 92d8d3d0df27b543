"""The benchmarks run on a CPU, before a rented GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.programs import PROGRAMS
from benchmarks.gpu.stages import Stages
from benchmarks.gpu.table import tables

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_gpu_programs_run_dry(tmp_path: Path, program: str) -> None:
    """No stage is skipped or fails at small widths."""
    printed = run("gpu", program, "--dry-run", "--out", str(tmp_path / "r.json"))
    assert "of 64 MiB" in printed  # of what is sent to a remote machine
    result = json.loads((tmp_path / f"r-{program}.json").read_text())
    assert not [n for n, row in result["stages"].items() if {"error", "skipped"} & row.keys()]
    assert "| – |" in tables([tmp_path / f"r-{program}.json"])


def test_results_survive_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "gpu", "plain", "--dry-run"]
    child = subprocess.Popen(
        [*command, "--out", str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("switch is exact:"):
            break
    child.kill()
    child.wait()
    child.stdout.close()
    stages = json.loads((tmp_path / "r-plain.json").read_text())["stages"]
    assert list(stages)[:5] == ["world", "facts", "ceilings", "start", "switch is exact"]
    assert stages["switch is exact"]["equal"] is True


def test_a_stage_records_its_error_or_skip(tmp_path: Path) -> None:
    now = [0.0]
    stages = Stages("p", tmp_path / "p.json", 10.0, clock=lambda: now[0])

    def fails() -> dict[str, float]:
        now[0] += 6
        raise ValueError("odd")

    stages.run("first", 5, fails)
    stages.run("second", 5, lambda: {"never": 1.0})
    stages.run("third", 3, lambda: {"figure": 1.0})
    rows = json.loads((tmp_path / "p.json").read_text())["stages"]
    assert rows["first"]["error"].endswith("ValueError: odd\n")
    assert rows["second"]["skipped"] == "4 s left, 5 s expected"
    assert rows["third"]["figure"] == 1.0
    assert stages.failed == ["first"]


@pytest.mark.slow
def test_the_swap_benchmark_runs(tmp_path: Path) -> None:
    printed = run("swap", "--rounds", "1", "--json", "--out", str(tmp_path / "swap.json"))
    result = json.loads(printed[printed.index("{") :])
    assert result == json.loads((tmp_path / "swap.json").read_text())
    assert result["ratios"]["diffusers / ours: LoRA, gpu"] > 1


@pytest.mark.slow
def test_faults_are_survived(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    printed = run("faults", "--only", "dispatcher-killed,store-cut", "--out", str(out))
    assert "| store-cut |" in printed
    assert len(json.loads(out.read_text())["faults"]) == 2


def test_gpu_benchmarks_need_no_platform_packages() -> None:
    """A rented GPU machine has no Ray, database or web packages."""
    code = (
        "import sys, benchmarks.gpu, benchmarks.swap, tests.gpu.plugin;"
        "unwanted = {'ray', 'sqlalchemy', 'pydantic_settings', 'fastapi'};"
        "print(unwanted & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "set()"
