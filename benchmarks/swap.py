"""Switching recipes: the engine against stock diffusers and a bare copy, for each tier.

In one process, interleaved: a rank-32 LoRA on both text encoders and the UNet's 722 linear layers
that trainers usually cover, an inversion, a second checkpoint. The bare copy moves a switch's
bytes. Only ratios are comparable between machines. Without Ray; on CUDA if available.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track

from assets.asset import AssetKind
from assets.base_model.import_model import import_model
from assets.content import Blob, Component
from assets.ingest.convert import ingest_file
from assets.recipe import InversionUse, LoraUse, Recipe
from assets.storage.object_paths import blob_key
from assets.storage.object_store import FsspecStore, put_file
from benchmarks.document import Document
from orchestrator.download import StoreSource
from orchestrator.file_tier import FileTier
from orchestrator.provision import Provisioner
from serving.engine.device_cache import Prepared
from serving.engine.engine import Engine
from serving.miniature.model import write_miniature
from tests.support.samples import write_inversion, write_kohya_lora

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


RESULT = Path(__file__).parent / "results" / "swap.json"
WORD = "qzebra"
TIERS = ("gpu", "host", "disk")


@dataclass(frozen=True)
class Stage:
    """An engine and a stock pipeline with the same model and assets."""

    engine: Engine
    base: Prepared
    provisioner: Provisioner
    host: FileTier
    pipeline: StableDiffusionXLPipeline
    folder: Path
    lora_file: Path
    inversion_file: Path
    other_unet: Path
    lora: Blob
    inversion: Blob
    unet: Blob

    def recipe(self, **changes: Any) -> Recipe:
        return replace(self.engine.base, **changes)


def set_up(folder: Path, device: str, rank: int) -> Stage:
    model = write_miniature(folder / "miniature")
    store = FsspecStore(f"file://{folder}/store")
    manifest = import_model(store, model, "base")
    schema = manifest.schema
    lora_file = write_kohya_lora(
        folder / "lora" / "lora.safetensors", schema, rank=rank, linears=True
    )
    inversion_file = write_inversion(folder / "inversion.safetensors", schema)
    other = write_other_unet(model / "unet", folder / "other-unet")

    def ingest(path: Path, kind: AssetKind, component: Component) -> Blob:
        scratch = folder / f"scratch-{component}"
        scratch.mkdir()
        blob, file = ingest_file(path, kind, schema, None, scratch).files[component]
        put_file(store, blob_key(blob), file)
        return blob

    disk, host = (FileTier(name, folder / name, 64 << 30) for name in ("disk", "host"))
    provisioner = Provisioner(StoreSource(store), disk, host)
    engine = Engine(manifest, provisioner, device)
    return Stage(
        engine=engine,
        base=engine.prepare(engine.base),
        provisioner=provisioner,
        host=host,
        pipeline=stock_pipeline(model, device),
        folder=folder,
        lora_file=lora_file,
        inversion_file=inversion_file,
        other_unet=other,
        lora=ingest(lora_file, "lora", "lora"),
        inversion=ingest(inversion_file, "textual_inversion", "textual_inversion"),
        unet=ingest(other / "diffusion_pytorch_model.safetensors", "checkpoint", "unet"),
    )


def write_other_unet(source: Path, target: Path) -> Path:
    """Write a diffusers UNet folder with weights scaled by 0.99."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "diffusion_pytorch_model.safetensors")
    changed = {name: (tensor * 0.99).contiguous() for name, tensor in tensors.items()}
    save_file(changed, target / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return target


def stock_pipeline(folder: Path, device: str) -> StableDiffusionXLPipeline:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    return pipeline.to(device, torch.float16 if device == "cuda" else torch.float32)


def stock_lora(pipeline: StableDiffusionXLPipeline, path: Path) -> None:
    """Load, fuse and remove a LoRA in a stock pipeline."""
    pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="x")
    pipeline.set_adapters(["x"], [0.8])
    pipeline.fuse_lora()
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()


def stock_steps(stage: Stage) -> dict[str, Callable[[], object]]:
    """Return by kind the stock calls that load and remove the asset."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    pipeline = stage.pipeline

    def inversion() -> None:
        vectors = load_file(stage.inversion_file)
        pairs = (
            ("clip_l", pipeline.tokenizer, pipeline.text_encoder),
            ("clip_g", pipeline.tokenizer_2, pipeline.text_encoder_2),
        )
        for key, tokenizer, encoder in pairs:
            pipeline.load_textual_inversion(
                vectors[key], WORD, tokenizer=tokenizer, text_encoder=encoder
            )
        for _, tokenizer, encoder in pairs:
            pipeline.unload_textual_inversion(
                [WORD, f"{WORD}_1"], tokenizer=tokenizer, text_encoder=encoder
            )

    def checkpoint() -> None:
        first = pipeline.unet
        unet = UNet2DConditionModel.from_pretrained(stage.other_unet, torch_dtype=first.dtype)
        pipeline.unet = unet.to(first.device)
        pipeline.unet = first

    return {
        "diffusers: LoRA": partial(stock_lora, pipeline, stage.lora_file),
        "diffusers: inversion": inversion,
        "diffusers: checkpoint": checkpoint,
    }


def our_steps(stage: Stage) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """Return by kind and tier: fill the tier; the switch from the base and back."""
    engine = stage.engine
    loras = (LoraUse(stage.lora, 0.8),)
    inversions = (InversionUse(stage.inversion, WORD),)
    recipes = {
        "LoRA": (stage.lora, stage.recipe(loras=loras)),
        "inversion": (stage.inversion, stage.recipe(inversions=inversions)),
        "checkpoint": (stage.unet, stage.recipe(unet=stage.unet)),
    }
    steps: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {}
    for kind, (blob, recipe) in recipes.items():
        for tier in TIERS:

            def place(tier: str = tier, blob: Blob = blob, recipe: Recipe = recipe) -> None:
                engine.prepare(recipe).release()
                if tier != "gpu":
                    engine.tier.evict_idle()
                if tier == "disk":
                    stage.host.evict(blob.key)

            def there_and_back(recipe: Recipe = recipe) -> None:
                prepared = engine.prepare(recipe)
                engine.switch_to(prepared)
                prepared.release()
                engine.switch_to(stage.base)

            steps[f"ours: {kind}, {tier}"] = place, there_and_back
    return steps


def copies(stage: Stage) -> dict[str, Callable[[], None]]:
    """Return bare copies of a switch's bytes; the host tier also reads the file."""
    engine = stage.engine
    unet = stage.base.pristine(engine.base.unet).slabs
    prepared = engine.prepare(stage.recipe(loras=(LoraUse(stage.lora, 1.0),)))
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    blobs: dict[Any, Blob] = dict(engine.base.components())
    for (component, shape), groups in prepared.lora(stage.lora).groups.items():
        slab = stage.base.pristine(blobs[component]).slabs[shape]
        for factors in groups:
            first, last = min(factors.rows), max(factors.rows) + 1
            is_contiguous = last - first == len(factors.rows)
            rows = (
                slice(first, last)
                if is_contiguous
                else torch.tensor(factors.rows, device=slab.device)
            )
            pairs.append((torch.empty_like(slab[rows]), slab[rows]))
    prepared.release()
    whole_unet = [(torch.empty_like(slab), slab) for slab in unet.values()]

    def copy(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for _ in range(2):
            for target, source in pairs:
                target.copy_(source)

    def read(blob: Blob) -> None:
        lease, _ = stage.provisioner.acquire(blob)
        with lease, open(lease.path, "rb", buffering=0) as file:
            file.readinto(buffers[blob.key])

    buffers = {blob.key: bytearray(blob.size_bytes) for blob in (stage.lora, stage.unet)}

    def after_reading(blob: Blob, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        read(blob)
        copy(pairs)

    return {
        "copy: LoRA, gpu": lambda: copy(pairs),
        "copy: LoRA, host": lambda: after_reading(stage.lora, pairs),
        "copy: checkpoint, gpu": lambda: copy(whole_unet),
        "copy: checkpoint, host": lambda: after_reading(stage.unet, whole_unet),
    }


@contextmanager
def quietly() -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logging in (diffusers_logging, transformers_logging):
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        yield


def measure(stage: Stage, device: str, rounds: int) -> dict[str, list[float]]:
    def timed(work: Callable[[], object]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) * 1000

    def nothing() -> None:
        pass

    ours, bare = our_steps(stage), copies(stage)
    steps: dict[str, tuple[Callable[[], None], Callable[[], object]]] = dict(ours.items())
    steps |= {name: (nothing, work) for name, work in (*bare.items(), *stock_steps(stage).items())}
    rows: dict[str, list[float]] = {name: [] for name in steps}
    for index in track(range(rounds + 2), description="rounds", transient=True):
        for name, (place, work) in steps.items():
            place()
            spent = timed(work)
            if index >= 2:  # warm-up
                rows[name].append(spent)
    return rows


def document(rows: dict[str, list[float]], device: str, rounds: int, rank: int) -> Document:
    medians = {name: statistics.median(values) for name, values in rows.items()}
    ratios = {}
    for kind in ("LoRA", "inversion", "checkpoint"):
        for tier in TIERS:
            ours = medians[f"ours: {kind}, {tier}"]
            ratios[f"diffusers / ours: {kind}, {tier}"] = medians[f"diffusers: {kind}"] / ours
            if f"copy: {kind}, {tier}" in medians:
                copy = medians[f"copy: {kind}, {tier}"]
                ratios[f"ours / bare copy: {kind}, {tier}"] = ours / copy
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"device": name, "rounds": rounds, "rank": rank, "median_ms": medians, "ratios": ratios}


def table(result: Document) -> str:
    """Return Markdown: milliseconds there and back, and ratios."""
    medians, ratios = result["median_ms"], result["ratios"]
    lines = [
        "| there and back | from | ours, ms | diffusers, ms | ratio | copy, ms | ours / copy |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in ("LoRA", "inversion", "checkpoint"):
        for tier in TIERS:
            copy = medians.get(f"copy: {kind}, {tier}")
            times = ratios.get(f"ours / bare copy: {kind}, {tier}")
            cells = [
                kind, tier, f"{medians[f'ours: {kind}, {tier}']:.2f}",
                f"{medians[f'diffusers: {kind}']:.0f}",
                f"{ratios[f'diffusers / ours: {kind}, {tier}']:.0f} ×",
                "–" if copy is None else f"{copy:.2f}",
                "–" if times is None else f"{times:.1f} ×",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with TemporaryDirectory(prefix="swap-") as temporary, quietly():
        stage = set_up(Path(temporary), device, arguments.rank)
        rows = measure(stage, device, arguments.rounds)
    result = document(rows, device, arguments.rounds, arguments.rank)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else table(result))


if __name__ == "__main__":
    main()
