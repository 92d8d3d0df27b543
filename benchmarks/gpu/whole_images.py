"""Whole images of the engine and of stock diffusers, and their parts."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from benchmarks.document import Document
from benchmarks.gpu.device import free_bytes, memory
from benchmarks.gpu.stages import Row
from benchmarks.gpu.unet_calls import step_flop, switch_to
from benchmarks.gpu.world import PROMPT, World, exact_convolutions, median
from serving.engine.compiled import compilations
from serving.engine.engine import Engine
from serving.engine.images import copy_pixels, encode_image
from serving.engine.options import EngineOptions
from serving.engine.text import Wording
from serving.generation.contract import GenerationResult
from serving.generation.prompts import parse


def start_engine(world: World, options: EngineOptions, name: str = "engine") -> Row:
    made: list[Engine] = []
    spent_ms = world.timed_ms(lambda: made.append(world.engine(options, name)))
    return {"start_s": spent_ms / 1000, "tier_bytes": world.tier.used_bytes, **memory(world)}


def warm_up(world: World, engine: Engine, guided: tuple[bool, ...] = (True, False)) -> Row:
    """Warm up one image of the native size; return times and memory."""
    before, free = compilations(), free_bytes(world)
    side = world.scale.side
    spent_ms = world.timed_ms(lambda: engine.warm_up([(side, side)], (1,), guided))
    after = compilations()
    return {
        "warm_up_s": spent_ms / 1000,
        **{name: after[name] - before[name] for name in after},
        "captured": len(engine.unet.graphs),
        "pool_bytes": engine.unet.pool_bytes,
        "taken_bytes": free - free_bytes(world),  # graphs also use memory outside their pool
    }


def no_fallback(world: World, engine: Engine, count: int) -> Row:
    """Run mixed recipes, which must neither fall back nor compile.

    Raises:
        AssertionError: a step fell back, or something was compiled.
    """
    before, graphs = engine.unet.fallbacks.total(), compilations()["graphs"]
    for recipe in world.recipes(count):
        world.generate(engine, world.request(recipe, steps=2))
    row = {
        "recipes": count,
        "fallbacks": engine.unet.fallbacks.total() - before,
        "compiled_again": compilations()["graphs"] - graphs,
    }
    if row["fallbacks"] or row["compiled_again"]:
        raise AssertionError(f"a step was not a replay, or was compiled again: {row}")
    return row


def images(
    world: World,
    engine: Engine,
    rivals: tuple[str, ...],
    rounds: int,
    matrix_tflops: float,
    left_s: Callable[[], float],
) -> Row:
    """Time images, interleaved: same recipe, another LoRA each time, stock diffusers.

    Prompts are new: times include encoding. Ends early when time is short.
    """
    side, rows, kept = world.scale.side, dict[str, list[float]](), Document()
    key = world.call_inputs()[0]
    if key not in engine.unet.graphs:
        raise AssertionError("the image's UNet call was not captured; see the warm-up")

    def measure(name: str, work: Callable[[], object]) -> None:
        rows.setdefault(name, []).append(world.timed_ms(lambda: kept.__setitem__(name, work())))

    before = engine.unet.fallbacks.total()
    for index in range(len(world.loras)):  # resident
        world.generate(engine, world.request(world.with_lora(index), steps=2))
    pipelines = {
        rival: world.stock("its best" if rival == "its best" else "as it comes") for rival in rivals
    }
    for index in range(rounds):
        if index > 1 and left_s() < 25:
            break
        prompt = f"{PROMPT} {index}"
        switch_to(engine, world)  # unmeasured: restores the last LoRA's weights
        same = world.request(prompt=prompt)
        another = world.request(world.with_lora(index), prompt=prompt)
        measure("same_recipe_ms", partial(world.generate, engine, same))
        measure("another_lora_ms", partial(world.generate, engine, another))
        if index < 6:
            switch_to(engine, world)
            measure("same_prompt_ms", partial(world.generate, engine, same))
        for name in ("same_recipe_ms", "another_lora_ms"):
            result: GenerationResult = kept[name]
            prefix = name.removesuffix("_ms")
            for phase in ("swap", "encode_prompt", "denoise", "decode", "encode_image"):
                spent_ms = getattr(result.timings, f"{phase}_ms")
                rows.setdefault(f"{prefix}_{phase}_ms", []).append(spent_ms)
        if index < 4:  # stock is slow; its first round warms it up
            for rival, pipeline in pipelines.items():
                vae = torch.bfloat16 if world.is_cuda else torch.float32
                dtype = None if rival == "as it comes" else vae
                measure(f"stock, {rival}", partial(world.stock_image, pipeline, dtype, prompt))
    medians = {name: median(samples[1:] or samples) for name, samples in rows.items()}
    spent = rows["same_recipe_ms"][1:] or rows["same_recipe_ms"]
    denoise_s = medians["same_recipe_denoise_ms"] / 1000
    achieved = step_flop(world) * world.scale.steps / denoise_s / 1e12
    ratios = {
        f"{name}_over_ours": medians[name] / medians["same_recipe_ms"]
        for name in medians
        if name.startswith("stock")
    }
    ours = world.generate(engine, world.request(encoding="png")).images[0]
    agreement = {
        f"psnr_to_stock, {rival}": _psnr(ours, world.stock_image(pipelines[rival]))
        for rival in rivals
    }
    return {
        **medians, **ratios, **agreement,
        "side": side, "rounds": len(rows["same_recipe_ms"]),
        "fallbacks": engine.unet.fallbacks.total() - before,
        "lora_tax": medians["another_lora_ms"] / medians["same_recipe_ms"],
        "maximum_over_median": max(spent) / median(spent),
        "p95_over_median": float(np.quantile(spent, 0.95)) / median(spent),
        "step_ms": medians["same_recipe_denoise_ms"] / world.scale.steps,
        "achieved_tflops": achieved,
        "achieved_share": achieved / matrix_tflops,
        "sdp_priority": list(torch._C._get_sdp_priority_order()) if world.is_cuda else [],
        "samples": rows,
    }  # fmt: skip


def _psnr(ours: bytes, theirs: Image.Image) -> float:
    """Return dB for a peak of 255; 99 if equal."""
    images = [np.asarray(image.convert("RGB"), np.float64) for image in (
        Image.open(io.BytesIO(ours)), theirs,
    )]  # fmt: skip
    error = float(np.mean((images[0] - images[1]) ** 2))
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


@torch.inference_mode()
def around(world: World, engine: Engine) -> Row:
    """Time text encoders, VAE, JPEG and PNG."""
    switch_to(engine, world)
    sections = parse("a red star").sections
    texts: Wording = {"text_encoder": sections, "text_encoder_2": sections}
    text_ms = [world.timed_ms(lambda: engine.prompts.text.encode(texts, {})) for _ in range(8)]
    side = world.scale.side
    latents = torch.randn(1, 4, side // 8, side // 8, device=world.device)
    ((_, decoded),) = engine.decoder.decode(latents)
    pixels = copy_pixels(decoded)
    jpeg = [encode_image(pixels, "jpeg").encode_ms for _ in range(5)]
    png = [encode_image(pixels, "png").encode_ms for _ in range(3)]
    exact_vae = copy.deepcopy(world.stock().vae).float()
    factor = float(exact_vae.config.scaling_factor)
    exact_ms = [world.timed_ms(lambda: exact_vae.decode(latents / factor).sample) for _ in range(4)]
    with exact_convolutions():
        exact = exact_vae.decode(latents / factor).sample[0]
    error = float((decoded.float().clamp(-1, 1) - exact.clamp(-1, 1)).square().mean())
    return {
        "text_encoders_ms": median(text_ms[2:]),
        "vae_ms": _decode_ms(world, engine),
        "vae_float32_ms": median(exact_ms[1:]),
        "vae_psnr_db": 99.0 if error == 0 else float(10 * np.log10(4 / error)),
        "jpeg_ms": median(jpeg), "png_ms": median(png),
    }  # fmt: skip


def _decode_ms(world: World, engine: Engine) -> float:
    side = world.scale.side // 8
    latents = torch.randn(1, 4, side, side, device=world.device)
    spent = [
        world.timed_ms(lambda: list(engine.decoder.decode(latents)))
        for _ in range(max(5, world.scale.rounds // 3))
    ]
    return median(spent[2:])


@torch.inference_mode()
def batches(world: World, engine: Engine) -> Row:
    """Return images per second in batches of 1, 2, 4, 8, from step and decode times."""
    row: Document = {}
    decode_ms = _decode_ms(world, engine)
    for batch in (1, 2, 4, 8):
        key, sample, context, added = world.call_inputs(batch)
        time = torch.tensor(500.0, device=world.device)
        with engine.unet.warming():
            call = engine.unet.start(key, context, added)
            call(sample, time)
        call = engine.unet.start(key, context, added)
        step_ms = median([world.timed_ms(partial(call, sample, time)) for _ in range(8)][2:])
        total_s = (world.scale.steps * step_ms + batch * decode_ms) / 1000
        row[f"step_ms_{batch}"] = step_ms
        row[f"images_s_{batch}"] = batch / total_s
    return {**row, "decode_ms": decode_ms, **memory(world)}


def stock_lora(world: World) -> Row:
    """Time stock's load, fuse, unfuse, unload of a LoRA."""
    from benchmarks.swap import stock_lora as there_and_back
    from tests.support.samples import write_kohya_lora

    shm = Path("/dev/shm")
    with TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        path = write_kohya_lora(
            Path(folder) / "lora.safetensors", world.manifest.schema,
            rank=world.scale.rank, strength=0.1, linears=True,
        )  # fmt: skip
        spent_ms = [world.timed_ms(lambda: there_and_back(world.stock(), path)) for _ in range(2)]
    world.forget("as it comes")  # peft wrapped its layers
    return {"there_and_back_ms": spent_ms[-1], "first_ms": spent_ms[0]}
