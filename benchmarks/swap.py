"""Becoming a recipe: our swap against stock diffusers' load, fuse, unfuse and unload.

Run: ``python -m benchmarks swap``. One engine and one pipeline over the same miniature,
the same LoRA (every attention projection of the UNet and both text encoders), the four
steps interleaved in one run; prints medians and the ratio. Needs no Ray, and uses CUDA
where there is one. Ratios travel between machines, milliseconds do not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from assets.import_model import import_model
from assets.ingest import ingest_file
from assets.keys import blob_key
from assets.recipe import LoraUse
from assets.store import FsspecStore, put_file
from benchmarks.samples import write_kohya_lora
from orchestrator.file_tier import FileTier
from orchestrator.provision import Provisioner
from serving.commons.miniature import write_miniature
from serving.composition import StoreSource
from serving.engine.compose import pick_device
from serving.engine.engine import Engine

RESULT = Path(__file__).parent / "results" / "swap.json"


def timed(device: str, work: Callable[[], Any]) -> float:
    """Milliseconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1000


def stock_pipeline(folder: Path, device: str) -> Any:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    return pipeline.to(device, torch.float16 if device == "cuda" else torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    device = pick_device("auto")
    with TemporaryDirectory(prefix="swap-") as temporary:
        rows = measure(Path(temporary), device, arguments.rounds)
    medians = {name: statistics.median(values) for name, values in rows.items()}
    ours = medians["ours: base to LoRA"] + medians["ours: LoRA to base"]
    ratio = medians["diffusers: load, fuse, unfuse, unload"] / ours
    for name, median in medians.items():
        print(f"{name:40} {median:9.2f} ms")
    print(f"{'diffusers / ours (there and back)':40} {ratio:9.0f} ×")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    document = {"device": name, "rounds": arguments.rounds, "median_ms": medians, "ratio": ratio}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


def measure(folder: Path, device: str, rounds: int) -> dict[str, list[float]]:
    model = write_miniature(folder / "miniature")
    store = FsspecStore(f"file://{folder}/store")
    manifest = import_model(store, model, "base")
    lora_file = write_kohya_lora(folder / "lora.safetensors", manifest.skeleton, rank=16)
    scratch = folder / "scratch"
    scratch.mkdir()
    done = ingest_file(lora_file, "lora", manifest.skeleton, None, scratch)
    blob, path = done.files["lora"]
    put_file(store, blob_key(blob), path)
    disk, host = (FileTier(name, folder / name, 1 << 30) for name in ("disk", "host"))
    engine = Engine(manifest, Provisioner(StoreSource(store), disk, host), device)
    base = engine.prepare(engine.base)
    with_lora = engine.prepare(replace(engine.base, loras=(LoraUse(blob, 1.0),)))
    weaker = engine.prepare(replace(engine.base, loras=(LoraUse(blob, 0.5),)))
    engine.become(base)
    pipeline = stock_pipeline(model, device)

    def diffusers_there_and_back() -> None:
        pipeline.load_lora_weights(lora_file.parent, weight_name=lora_file.name)
        pipeline.fuse_lora()
        pipeline.unfuse_lora()
        pipeline.unload_lora_weights()

    steps: dict[str, Callable[[], Any]] = {
        "ours: base to LoRA": lambda: engine.become(with_lora),
        "ours: another weight": lambda: engine.become(weaker),
        "ours: LoRA to base": lambda: engine.become(base),
        "diffusers: load, fuse, unfuse, unload": diffusers_there_and_back,
    }
    rows: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(rounds + 2):
        for name, step in steps.items():
            spent = timed(device, step)
            if index >= 2:  # the first rounds warm up
                rows[name].append(spent)
    for prepared in (base, with_lora, weaker):
        prepared.release()
    return rows


if __name__ == "__main__":
    main()
