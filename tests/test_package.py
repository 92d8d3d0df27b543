"""The wheel contains exactly the four packages with their data."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_contents(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in tracked:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True, timeout=280)
    names = _names(next(tmp_path.glob("*.whl")))
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"assets", "orchestrator", "router", "serving"}
    assert "serving/engine/data/bpe_simple_vocab_16e6.txt.gz" in names
    assert "serving/migrations/versions/0001_first.py" in names
    modules = {n for n in tracked if n.endswith(".py") and n.split("/")[0] in tops}
    assert modules <= set(names)


def _names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as wheel:
        return wheel.namelist()
