"""Loading checkpoint weights onto the device: the engine, safetensors' ``load_file`` and bare
reads.

    python -m benchmarks load            # into host memory
    python -m benchmarks load --device cuda

From tmpfs, like the host tier, and from disk, out of the page cache. One bare read fills an
allocated buffer; another goes through a small buffer in the CPU's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file

from assets.formats.tensors import DTYPE_NAMES, PlannedTensor, TensorFile, write_tensors
from benchmarks.document import Document
from serving.engine.slabs import SlabLayout, load_slabs

RESULTS = Path(__file__).parent / "results" / "load.json"
#: SDXL's large shapes, and a few small ones.
SHAPES = {
    (1280, 1280): 24, (10240, 1280): 4, (1280, 5120): 4, (640, 640): 24, (5120, 640): 8,
    (1280, 2048): 16, (640, 2048): 8, (1280, 640, 3, 3): 2, (1280,): 60, (640,): 60,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks load")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--copies", type=int, default=2, help="how often each of SHAPES occurs")
    parser.add_argument("--disk", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    shared = Path("/dev/shm")
    result = measure(
        torch.device(arguments.device),
        arguments.rounds,
        arguments.copies,
        Path(tempfile.mkdtemp(prefix="load-", dir=shared if shared.is_dir() else None)),
        Path(tempfile.mkdtemp(prefix="load-", dir=arguments.disk)),
    )
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else table(result))


def measure(device: torch.device, rounds: int, copies: int, memory: Path, disk: Path) -> Document:
    """Return medians in GB/s; remove both folders."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    parameters = {
        f"block.{number}.{'x'.join(map(str, shape))}": shape
        for shape, count in SHAPES.items()
        for number in range(count * copies)
    }
    layout = SlabLayout(parameters)
    order = [name for names in layout.rows.values() for name in names]
    try:
        files = {}
        for medium, folder in (("tmpfs", memory), ("disk", disk)):
            files[medium] = folder / "weights.safetensors"
            torch.manual_seed(0)
            planned = {
                name: PlannedTensor(DTYPE_NAMES[dtype], shape, _random(shape, dtype))
                for name, shape in parameters.items()
            }
            write_tensors(files[medium], planned, {}, order)
        size = files["disk"].stat().st_size
        whole = bytearray(size)
        whole[:] = b"\1" * size  # allocates its pages

        # A checkpoint swap reuses the evicted one's memory.
        slabs = layout.allocate(device, dtype)
        with TensorFile(files["tmpfs"]) as file:
            load_slabs(file, layout, device, dtype, spare=slabs)

        def bare(path: Path) -> None:
            with open(path, "rb", buffering=0) as file:
                view, done = memoryview(whole), 0
                while count := file.readinto(view[done:]):
                    done += count

        def small(path: Path) -> None:
            buffer = bytearray(8 << 20)
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

        def ours(path: Path) -> None:
            with TensorFile(path) as file:
                load_slabs(file, layout, device, dtype, spare=slabs)

        def theirs(path: Path) -> None:
            tensors = load_file(path, device=str(device))
            if device.type == "cpu":  # only mapped: touch every page
                for tensor in tensors.values():
                    tensor.view(-1).view(torch.uint8)[::4096].sum()

        ways: dict[str, Callable[[Path], None]] = {
            "ours": ours, "bare": bare, "bare_small_buffer": small, "safetensors": theirs,
        }  # fmt: skip
        spent: dict[str, dict[str, list[float]]] = {
            medium: {way: [] for way in ways} for medium in files
        }
        turns = list(ways.items())
        for _ in range(rounds):
            turns.append(turns.pop(0))  # no way always runs first
            for medium, path in files.items():
                for way, load in turns:
                    if medium == "disk":
                        _uncache(path)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    started = time.perf_counter()
                    load(path)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    spent[medium][way].append(time.perf_counter() - started)
    finally:
        shutil.rmtree(memory, ignore_errors=True)
        shutil.rmtree(disk, ignore_errors=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    result: Document = {"device": name, "bytes": size, "rounds": rounds, "seconds": spent}
    for medium, times in spent.items():
        rates = {way: size / median(seconds) / 1e9 for way, seconds in times.items()}
        result[medium] = {
            **{f"{way}_gb_s": rate for way, rate in rates.items()},
            "ours / bare": rates["ours"] / rates["bare"],
            "ours / safetensors": rates["ours"] / rates["safetensors"],
        }
    return result


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(shape).to(dtype)


def _uncache(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def table(result: Document) -> str:
    lines = [
        "| from | ours, GB/s | bare reading, GB/s | through a small buffer, GB/s "
        "| safetensors, GB/s | ours / bare | ours / safetensors |",
        "|" + "---|" * 7,
    ]
    for medium, title in (("tmpfs", "tmpfs"), ("disk", "disk, uncached")):
        row = result[medium]
        lines.append(
            f"| {title} | {row['ours_gb_s']:.2f} | {row['bare_gb_s']:.2f} "
            f"| {row['bare_small_buffer_gb_s']:.2f} | {row['safetensors_gb_s']:.2f} "
            f"| {row['ours / bare']:.2f} | {row['ours / safetensors']:.2f} |"
        )
    return "\n".join(lines)
