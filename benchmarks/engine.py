"""The engine on one GPU: a full-size SDXL, a picture after another, and what a LoRA costs.

Run: ``python -m benchmarks engine --full-size --device cuda``; ``--dry-run`` runs all of the same
code at small widths on a CPU in a minute, so that nothing is found out on a rented GPU. The
weights are random: time does not depend on them. No Ray; diffusers and our own packages only.

In one process, interleaved: our pictures with one recipe and with another LoRA in every
request, stock diffusers' pictures (eager), and its way to another LoRA. Beside them, what the
device can do: a plain matrix product, a plain copy. Every figure is a median of what the JSON
holds in full.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from assets.asset import AssetKind
from assets.content import MODEL_COMPONENTS, Blob, Component
from assets.formats.tensors import Planned, write_tensors
from assets.import_model import import_model
from assets.ingest import ingest_file
from assets.keys import blob_key
from assets.recipe import LoraUse, Recipe
from assets.sdxl import SDXL_CONFIGS, skeleton_of
from assets.skeleton import Shape, Skeleton
from assets.store import FsspecStore, put_file
from benchmarks.samples import write_kohya_lora
from benchmarks.swap import quietly, stock_lora, stock_pipeline
from orchestrator.download import StoreSource
from orchestrator.file_tier import FileTier
from orchestrator.provision import Provisioner
from serving.commons.miniature import MINIATURE_CONFIGS, write_miniature
from serving.drawing import Drawing, DrawRequest
from serving.engine.compiled import compilations, keep_artifacts
from serving.engine.engine import Engine

RESULT = Path(__file__).parent / "results" / "engine.json"
PROMPT = "a small red star on a blue background"
Say = Callable[[str], None]


def random_model(folder: Path, device: str) -> Path:
    """A full-size SDXL in diffusers layout whose weights are random and draw finite pictures."""
    write_miniature(folder)  # for its tokenizers, scheduler and index
    generator = torch.Generator(device).manual_seed(1)

    def values(name: str, shape: Shape) -> torch.Tensor:
        if name.endswith(".bias"):
            return torch.zeros(shape, dtype=torch.float16)
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.float16)
        fan_in = 1
        for extent in shape[1:]:
            fan_in *= extent
        scale = 0.5 / fan_in**0.5
        drawn: torch.Tensor = torch.randn(shape, generator=generator, device=device) * scale
        return drawn.half().cpu()

    skeleton = skeleton_of(SDXL_CONFIGS)
    for component in MODEL_COMPONENTS:
        (weights,) = (folder / component).glob("*.safetensors")
        (folder / component / "config.json").write_text(json.dumps(SDXL_CONFIGS[component]))
        planned = {
            name: Planned("F16", shape, partial(values, name, shape))
            for name, shape in skeleton.components[component].items()
        }
        write_tensors(weights, planned, {"format": "pt"})
    return folder


class Bench:
    """The engine with a base, a second checkpoint and several LoRAs; and stock diffusers."""

    def __init__(self, folder: Path, arguments: argparse.Namespace, say: Say) -> None:
        self.device: str = arguments.device
        say("making a model")
        full_size = arguments.full_size
        model = folder / "model"
        model = random_model(model, self.device) if full_size else write_miniature(model)
        self._store = FsspecStore(f"file://{folder}/store")
        self._folder = folder
        say("importing it")
        configs = SDXL_CONFIGS if full_size else MINIATURE_CONFIGS
        self.manifest = import_model(self._store, model, "base", single_file_configs=configs)
        skeleton = self.manifest.skeleton
        say(f"making {arguments.loras} LoRAs of rank {arguments.rank} and a second checkpoint")
        self.lora_files = [
            write_kohya_lora(
                folder / f"lora-{seed}" / "lora.safetensors", skeleton,
                rank=arguments.rank, seed=seed, strength=0.1, linears=True,
            )
            for seed in range(arguments.loras)
        ]  # fmt: skip
        self.loras = [self._ingest(path, "lora", "lora") for path in self.lora_files]
        self.other = self._ingest(self._other_unet(model, skeleton), "checkpoint", "unet")
        say("starting the engine: loading, compiling, warming up")
        disk, host = (FileTier(name, folder / name, 64 << 30) for name in ("disk", "host"))
        started = time.perf_counter()
        self.engine = Engine(
            self.manifest,
            Provisioner(StoreSource(self._store), disk, host),
            self.device,
            64 << 30,
            compiling=arguments.compile,
        )
        self.load_s = time.perf_counter() - started
        self.side = arguments.side or self.manifest.native_size
        self.engine.warm_up([(self.side, self.side)])
        self.warm_up_s = time.perf_counter() - started - self.load_s
        self.request = DrawRequest(
            "r", self.engine.base, PROMPT, self.side, self.side, (7,),
            steps=arguments.steps, cfg_scale=7.5,
        )  # fmt: skip
        say("starting stock diffusers")
        self.pipeline = stock_pipeline(model, self.device)
        self.pipeline.set_progress_bar_config(disable=True)

    def _ingest(self, path: Path, kind: AssetKind, component: Component) -> Blob:
        with TemporaryDirectory(dir=self._folder) as scratch:
            done = ingest_file(path, kind, self.manifest.skeleton, None, Path(scratch))
            blob, file = done.files[component]
            put_file(self._store, blob_key(blob), file)
        return blob

    def _other_unet(self, model: Path, skeleton: Skeleton) -> Path:
        from assets.formats.tensors import TensorFile

        (source,) = (model / "unet").glob("*.safetensors")
        with TensorFile(source) as file:

            def fainter(name: str) -> torch.Tensor:
                return file.read(name).half() * 0.99

            planned = {
                name: Planned("F16", shape, partial(fainter, name))
                for name, shape in skeleton.components["unet"].items()
            }
            write_tensors(self._folder / "other.safetensors", planned, {})
        return self._folder / "other.safetensors"

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def draw(self, recipe: Recipe) -> Drawing:
        prepared = self.engine.prepare(recipe)
        try:
            return self.engine.draw(prepared, replace(self.request, recipe=recipe))
        finally:
            prepared.release()

    def with_lora(self, index: int, weight: float = 0.8) -> Recipe:
        blob = self.loras[index % len(self.loras)]
        return replace(self.engine.base, loras=(LoraUse(blob, weight),))

    def stock_picture(self) -> None:
        self.pipeline(
            PROMPT, num_inference_steps=self.request.steps, guidance_scale=7.5,
            width=self.side, height=self.side, generator=torch.Generator().manual_seed(7),
        )  # fmt: skip

    def stock_lora(self, index: int) -> None:
        stock_lora(self.pipeline, self.lora_files[index % len(self.lora_files)])


def measure(bench: Bench, rounds: int, stock_rounds: int, say: Say) -> dict[str, list[float]]:
    """Seconds (and milliseconds where the name says so) of every round."""
    rows: dict[str, list[float]] = {}

    def keep(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    engine = bench.engine
    for index in range(len(bench.loras)):  # all of them resident, as popular ones are
        bench.draw(bench.with_lora(index))
    say(f"pictures: {rounds} rounds")
    for index in range(rounds):
        for name, recipe in (
            ("same recipe", engine.base),
            ("another LoRA", bench.with_lora(index)),
        ):
            drawings: list[Drawing] = []
            keep(f"picture, {name}", bench.timed(lambda: drawings.append(bench.draw(recipe))))  # noqa: B023
            timings = drawings[0].timings
            keep(f"denoise ms, {name}", timings.denoise_ms)
            keep(f"swap ms, {name}", timings.swap_ms)
            keep(f"encode prompt ms, {name}", timings.encode_prompt_ms)
            keep(f"decode ms, {name}", timings.decode_ms)
        if index < stock_rounds:
            keep("picture, stock diffusers", bench.timed(bench.stock_picture))
            keep(
                "LoRA there and back, stock diffusers",
                bench.timed(partial(bench.stock_lora, index)),
            )
    say("swaps")
    base, other = (
        engine.prepare(engine.base),
        engine.prepare(replace(engine.base, unet=bench.other)),
    )
    prepared = [engine.prepare(bench.with_lora(index)) for index in range(len(bench.loras))]
    unet = base.pristine(engine.base.unet).slabs
    copies = [(torch.empty_like(slab), slab) for slab in unet.values()]

    def copy() -> None:
        for target, source in copies:
            target.copy_(source)

    for index in range(max(rounds, 10)):
        engine.become(base)
        keep(
            "become a LoRA ms",
            1000 * bench.timed(partial(engine.become, prepared[index % len(prepared)])),
        )
        lighter = engine.prepare(bench.with_lora(index, 0.3))
        keep("become another weight ms", 1000 * bench.timed(partial(engine.become, lighter)))
        lighter.release()
        keep("become the base ms", 1000 * bench.timed(partial(engine.become, base)))
        keep("become a checkpoint ms", 1000 * bench.timed(partial(engine.become, other)))
        keep("bare copy of the UNet ms", 1000 * bench.timed(copy))
    for one in (base, other, *prepared):
        one.release()
    return rows


@torch.inference_mode()
def matrix_tflops(bench: Bench) -> float:
    """What a plain matrix product reaches here, TFLOP/s."""
    size = 8192 if bench.device == "cuda" else 512
    dtype = torch.float16 if bench.device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
    spent = [bench.timed(lambda: torch.mm(a, b)) for _ in range(20)]
    return 2 * size**3 / statistics.median(spent[5:]) / 1e12


@torch.inference_mode()
def step_tflop(bench: Bench) -> float:
    """Arithmetic of one guided step of the UNet, TFLOP, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    config: Mapping[str, Any] = bench.manifest.configs["unet"]
    unet, dtype = bench.pipeline.unet, bench.pipeline.unet.dtype
    make = partial(torch.zeros, device=bench.device, dtype=dtype)
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    with FlopCounterMode(display=False) as counter:
        unet(
            make(2, config["in_channels"], bench.side // 8, bench.side // 8),
            torch.tensor(1.0, device=bench.device),
            encoder_hidden_states=make(2, 77, config["cross_attention_dim"]),
            added_cond_kwargs={"text_embeds": make(2, pooled), "time_ids": make(2, 6)},
        )
    flops: float = counter.get_total_flops()
    return flops / 1e12


def summary(rows: dict[str, list[float]], bench: Bench, recompiled: int) -> dict[str, Any]:
    median = {name: statistics.median(values) for name, values in rows.items()}
    same = sorted(rows["picture, same recipe"])
    denoise_s = median["denoise ms, same recipe"] / 1000
    steps = bench.request.steps
    achieved = step_tflop(bench) * steps / denoise_s
    possible = matrix_tflops(bench)
    return {
        "pictures": f"{steps} steps DDIM at {bench.side}x{bench.side}, guided",
        "load_s": bench.load_s,
        "compile_and_warm_up_s": bench.warm_up_s,
        "median": median,
        "lora_tax": median["picture, another LoRA"] / median["picture, same recipe"],
        "p99_over_p50": same[min(len(same) - 1, int(len(same) * 0.99))] / statistics.median(same),
        "stock_over_ours": median["picture, stock diffusers"] / median["picture, same recipe"],
        "stock_lora_over_ours": median["LoRA there and back, stock diffusers"]
        * 1000 / (median["become a LoRA ms"] + median["become the base ms"]),
        "checkpoint_over_step": median["become a checkpoint ms"] / (1000 * denoise_s / steps),
        "checkpoint_over_copy": median["become a checkpoint ms"]
        / median["bare copy of the UNet ms"],
        "achieved_tflops": achieved,
        "matrix_tflops": possible,
        "achieved_share": achieved / possible,
        "recompiled": recompiled,
    }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """Markdown."""
    s, median = result["summary"], result["summary"]["median"]
    lines = [
        f"| {result['device']}, {s['pictures']}, compile: {result['compile']} | |",
        "|---|---|",
        f"| a picture, the same recipe | {median['picture, same recipe']:.3f} s |",
        f"| a picture, another LoRA in every request | {median['picture, another LoRA']:.3f} s |",
        f"| LoRA tax | {s['lora_tax']:.3f} × |",
        f"| p99 / p50 | {s['p99_over_p50']:.3f} |",
        f"| denoising alone | {median['denoise ms, same recipe'] / 1000:.3f} s |",
        f"| stock diffusers, eager / ours | {s['stock_over_ours']:.2f} × |",
        f"| becoming a LoRA; another weight; the base | {median['become a LoRA ms']:.2f}; "
        f"{median['become another weight ms']:.2f}; {median['become the base ms']:.2f} ms |",
        f"| stock LoRA / ours, there and back | {s['stock_lora_over_ours']:.0f} × |",
        f"| switch of checkpoint / one step | {s['checkpoint_over_step']:.2f} |",
        f"| switch of checkpoint / bare copy | {s['checkpoint_over_copy']:.2f} × |",
        f"| achieved of the measured matrix rate | {s['achieved_tflops']:.1f} of "
        f"{s['matrix_tflops']:.1f} TFLOP/s ({100 * s['achieved_share']:.0f} %) |",
        f"| compiled again after warm-up | {s['recompiled']} |",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full-size", action="store_true", help="SDXL's own widths")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dry-run", action="store_true", help="everything, small, on a CPU")
    parser.add_argument("--compile", choices=("off", "regional", "full"), default="regional")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--side", type=int, default=0, help="pixels; default: the model's own")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--stock-rounds", type=int, default=5)
    parser.add_argument("--loras", type=int, default=6)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--out", type=Path, help="default: results/engine.json; none if dry")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    if arguments.dry_run:
        arguments.full_size, arguments.device = False, "cpu"
        arguments.steps, arguments.rounds, arguments.stock_rounds = 2, 2, 2
        arguments.loras, arguments.side = 2, 64
    elif arguments.out is None:
        arguments.out = RESULT

    def say(text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)

    with TemporaryDirectory(prefix="engine-", dir=os.environ.get("TMPDIR")) as temporary, quietly():
        if arguments.compile != "off":
            keep_artifacts(Path(temporary) / "compiled")
        bench = Bench(Path(temporary), arguments, say)
        before = compilations()["graphs"]
        rows = measure(bench, arguments.rounds, arguments.stock_rounds, say)
        recompiled = compilations()["graphs"] - before
        name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
        result = {
            "device": name,
            "torch": torch.__version__,
            "compile": arguments.compile,
            "full_size": arguments.full_size,
            "compilations": dict(compilations()),
            "summary": summary(rows, bench, recompiled),
            "rows": rows,
        }
    if arguments.out is not None:
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else table(result))


if __name__ == "__main__":
    main()
