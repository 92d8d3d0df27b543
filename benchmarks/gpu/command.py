"""The command line of ``python -m benchmarks gpu``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu.programs import PROGRAMS
from benchmarks.gpu.stages import Row, Stages
from benchmarks.gpu.table import tables
from benchmarks.gpu.world import DRY, FULL, SMALL, World, make_world
from benchmarks.swap import quietly

ROOT = Path(__file__).parents[2]
#: Limit of what is sent to a remote machine.
TRAVEL_BYTES = 64 << 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks gpu", description="The engine on one GPU.")
    parser.add_argument(
        "program", nargs="?", default="", help=f"{', '.join(PROGRAMS)}; or table, or size"
    )
    parser.add_argument("files", nargs="*", type=Path, help="results, for table")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds for the whole program")
    parser.add_argument("--out", type=Path, help="JSON, rewritten after each stage")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dry-run", action="store_true", help="small, on a CPU; all programs if none is named"
    )
    arguments = parser.parse_args()
    if arguments.program == "table":
        print(tables(arguments.files))
    elif arguments.program == "size":
        check_size()
    elif arguments.dry_run:
        dry_run(arguments.program, arguments.budget, arguments.out)
    elif arguments.program in PROGRAMS:
        run(arguments.program, arguments.budget, arguments.out, arguments.device)
    else:
        parser.error(f"no program {arguments.program!r}; use {', '.join(PROGRAMS)}, table or size")


def run(name: str, budget_s: float, out: Path | None, device: str, is_dry: bool = False) -> Stages:
    """Run one program."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/gpu-inductor")
    is_cuda = device.startswith("cuda")
    started = os.environ.get("GPU_STARTED", "")  # includes imports
    if started:
        budget_s -= time.time() - float(started)
    stages = Stages(name, out, budget_s, torch.cuda.synchronize if is_cuda else lambda: None)
    stages.document["device"] = torch.cuda.get_device_name() if is_cuda else "CPU"
    if not is_dry:
        stages.arm()
    with quietly():
        if is_cuda:  # PyTorch fixes its order at the first call
            zeros = torch.zeros(1, 1, 8, 64, device=device, dtype=torch.float16)
            torch.nn.functional.scaled_dot_product_attention(zeros, zeros, zeros)
        scale = DRY if is_dry else FULL if is_cuda else SMALL
        made: list[World] = []

        def make() -> Row:
            made.append(make_world(torch.device(device), scale))
            return {"tier_bytes": made[0].tier.used_bytes}

        stages.run("world", 0 if is_dry else 8, make)
        if made:
            PROGRAMS[name](made[0], stages, is_dry)
    stages.disarm()
    return stages


def dry_run(only: str, budget_s: float, out: Path | None) -> None:
    """Run ``only`` or all programs, small, on the CPU; exit 1 on failure."""
    failed: list[str] = []
    for name in [only] if only else PROGRAMS:
        into = None if out is None else out.with_name(f"{out.stem}-{name}.json")
        torch._dynamo.reset()
        stages = run(name, budget_s, into, "cpu", is_dry=True)
        failed += [f"{name}: {stage}" for stage in stages.failed]
        for stage in stages.failed:
            print(stages.document["stages"][stage]["error"], file=sys.stderr)
    check_size()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def check_size() -> None:
    """Print the size of tracked and new files, wheels in .whl."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split("\0")  # fmt: skip
    tree = sum(path.stat().st_size for n in listed if n and (path := ROOT / n).is_file())
    wheels = sum(path.stat().st_size for path in (ROOT / ".whl").glob("*.whl"))
    total = tree + wheels
    print(
        f"the tree {tree / 2**20:.1f} MiB, wheels {wheels / 2**20:.1f} MiB: "
        f"{total / 2**20:.1f} of {TRAVEL_BYTES >> 20} MiB"
    )
    if total > TRAVEL_BYTES:
        raise SystemExit("too large for a remote machine; remove files or wheels")
