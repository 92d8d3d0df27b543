"""The benchmarks run: what is only found out on a rented GPU is found out too late."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_engine_benchmark_runs_dry() -> None:
    """All of its code, at small widths; and no recipe compiles anything."""
    printed = run("engine", "--dry-run", "--compile", "regional")
    assert "| compiled again after warm-up | 0 |" in printed


@pytest.mark.slow
def test_the_swap_benchmark_runs(tmp_path: Path) -> None:
    printed = run("swap", "--rounds", "1", "--json", "--out", str(tmp_path / "swap.json"))
    result = json.loads(printed[printed.index("{") :])
    assert result == json.loads((tmp_path / "swap.json").read_text())
    assert result["ratios"]["diffusers / ours: LoRA, gpu"] > 1


@pytest.mark.slow
def test_faults_are_survived(tmp_path: Path) -> None:
    """Two of them; the command ends with an error when something was lost."""
    out = tmp_path / "faults.json"
    printed = run("faults", "--only", "dispatcher-killed,store-cut", "--out", str(out))
    assert "| store-cut |" in printed
    assert len(json.loads(out.read_text())["faults"]) == 2


def test_on_a_gpu_it_needs_no_platform() -> None:
    """diffusers, cachetools and our own packages: what a rented machine has, or takes as wheels."""
    code = (
        "import sys, benchmarks.engine, benchmarks.swap;"
        "unwanted = {'ray', 'sqlalchemy', 'pydantic_settings', 'fastapi'};"
        "print(unwanted & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "set()"
