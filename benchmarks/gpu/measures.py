"""What each stage checks and measures. Every function takes the world and answers a row."""

from __future__ import annotations

import asyncio
import copy
import io
import os
import platform
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.stages import Row
from benchmarks.gpu.world import PROMPT, World, exact_convolutions, median, relative
from serving.drawing import Drawing, DrawRequest
from serving.engine.attention import attention_order
from serving.engine.compiled import compilations
from serving.engine.engine import Engine
from serving.engine.graphs import Captured
from serving.engine.options import EngineOptions
from serving.engine.pictures import copy_pixels, encode_image
from serving.engine.shelf import Prepared
from serving.engine.unet import Replay
from serving.replica import Replica

#: Orders of attention backends that are compared.
ATTENTION = ("cudnn", "flash", "efficient", "math")


def facts(world: World) -> Row:
    row: dict[str, Any] = {
        "device": "CPU", "torch": torch.__version__, "python": platform.python_version(),
        "cpus": os.cpu_count(), "side": world.scale.side, "steps": world.scale.steps,
    }  # fmt: skip
    if world.is_cuda:
        properties = torch.cuda.get_device_properties(world.device)
        row |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "free_bytes": torch.cuda.mem_get_info(world.device)[0],
            "capability": list(torch.cuda.get_device_capability(world.device)),
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "sdp_priority": list(torch._C._get_sdp_priority_order()),
        }
    return row


@torch.inference_mode()
def ceilings(world: World) -> Row:
    """What the device can do: a plain matrix product, plain copies."""
    size = world.scale.matrix
    dtype = torch.float16 if world.is_cuda else torch.float32
    a, b = (torch.randn(size, size, device=world.device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def products() -> None:
        for _ in range(10):
            torch.mm(a, b, out=out)

    product_ms = [world.timed_ms(products) / 10 for _ in range(6)]
    count = world.scale.copy_bytes
    source = torch.empty(count, dtype=torch.uint8, device=world.device)
    target = torch.empty_like(source)
    host = torch.empty(count, dtype=torch.uint8, pin_memory=world.is_cuda)

    def rate(bytes_moved: int, work: Callable[[], Any]) -> float:
        return bytes_moved / median([world.timed_ms(work) for _ in range(5)]) / 1e6

    return {
        "matrix_tflops": 2 * size**3 / median(product_ms[2:]) / 1e9,
        "copy_gb_s": rate(2 * count, lambda: target.copy_(source)),
        "to_device_gb_s": rate(count, lambda: target.copy_(host, non_blocking=True)),
        "to_host_gb_s": rate(count, lambda: host.copy_(source, non_blocking=True)),
    }


def start_engine(world: World, options: EngineOptions, name: str = "engine") -> Row:
    made: list[Engine] = []
    spent_ms = world.timed_ms(lambda: made.append(world.engine(options, name)))
    return {"start_s": spent_ms / 1000, "tier_bytes": world.tier.used_bytes, **_memory(world)}


def _memory(world: World) -> dict[str, Any]:
    if not world.is_cuda:
        return {}
    return {
        "allocated_bytes": torch.cuda.memory_allocated(world.device),
        "peak_bytes": torch.cuda.max_memory_allocated(world.device),
        "reserved_bytes": torch.cuda.memory_reserved(world.device),
    }


# Switching


def switch_is_exact(world: World, engine: Engine) -> Row:
    """Every recipe's weights after three different histories, and the base again."""
    base = engine.prepare(world.base)
    engine.become(base)
    before = engine.digest()
    recipes = [engine.prepare(recipe) for recipe in world.recipes(world.scale.recipes)]
    digests: list[list[str]] = []
    for history in ([base], recipes[::-1], [recipes[0], base, recipes[-1]]):
        digests.append([])
        for recipe in recipes:
            for other in history:
                engine.become(other)
            engine.become(recipe)
            digests[-1].append(engine.digest())
    engine.become(base)
    after = engine.digest()
    for prepared in (base, *recipes):
        prepared.release()
    if not all(row == digests[0] for row in digests) or before != after:
        raise AssertionError("the weights of a recipe depend on the recipes before it")
    return {"recipes": len(recipes), "histories": len(digests), "equal": True}


def switch_times(world: World, engine: Engine) -> Row:
    """From the base to a LoRA, to another weight, back, to a checkpoint; beside the bare copy."""
    base, other = engine.prepare(world.base), engine.prepare(world.with_checkpoint)
    loras = [engine.prepare(world.with_lora(i)) for i in range(len(world.loras))]
    lighter = [engine.prepare(world.with_lora(i, 0.3)) for i in range(len(world.loras))]
    slabs = base.pristine(world.base.unet).slabs.values()
    copies = [(torch.empty_like(slab), slab) for slab in slabs]
    rows: dict[str, list[float]] = {}

    def measure(name: str, work: Callable[[], Any]) -> None:
        rows.setdefault(name, []).append(world.timed_ms(work))

    def bare() -> None:
        for target, source in copies:
            target.copy_(source)

    engine.become(base)
    for index in range(max(3, world.scale.rounds // 3)):
        steps: list[tuple[str, Prepared]] = [
            ("lora_ms", loras[index % len(loras)]),
            ("another_weight_ms", lighter[index % len(loras)]),
            ("base_ms", base),
            ("checkpoint_ms", other),
        ]
        for name, prepared in steps:
            measure(name, partial(engine.become, prepared))
        engine.become(base)
        measure("bare_copy_ms", bare)
    for prepared in (base, other, *loras, *lighter):
        prepared.release()
    medians = {name: median(samples[1:]) for name, samples in rows.items()}
    over_copy = medians["checkpoint_ms"] / medians["bare_copy_ms"]
    return {**medians, "checkpoint_over_copy": over_copy, "samples": rows}


# One call of the UNet


def _become(engine: Engine, world: World, lora: int | None = None) -> None:
    recipe = world.base if lora is None else world.with_lora(lora)
    with engine.prepare(recipe) as prepared:
        engine.become(prepared)
        engine._settle()


@torch.inference_mode()
def step_is_right(world: World, engine: Engine) -> Row:
    """Our prediction and stock's against a float32 reference with the same weights."""
    _become(engine, world)
    key, sample, context, added = world.call_inputs()
    time = torch.tensor(500.0, device=world.device)
    engine.unet.start(key, context, added)
    ours = engine.unet.run(key, sample, time, context, added)
    stock = world.stock().unet
    named = {"encoder_hidden_states": context, "added_cond_kwargs": added}
    theirs = stock(sample, time, **named).sample
    exact_unet = copy.deepcopy(stock).float()
    with exact_convolutions():
        exact = exact_unet(
            sample.float(), time, encoder_hidden_states=context.float(),
            added_cond_kwargs={name: tensor.float() for name, tensor in added.items()},
        ).sample  # fmt: skip
    row = {
        "ours_to_exact": relative(ours, exact),
        "stock_to_exact": relative(theirs, exact),
        "ours_to_stock": relative(ours, theirs),
    }
    limit = max(1.2 * row["stock_to_exact"], 1e-5)
    if not row["ours_to_exact"] <= limit:
        raise AssertionError(f"our step is off: {row}")
    return row


@torch.inference_mode()
def step_flop(world: World) -> float:
    """Arithmetic of one guided call at batch 1, counted by torch in stock's UNet, less the prompt's
    keys and values, which we compute once an image."""
    from torch.utils.flop_counter import FlopCounterMode

    _, sample, context, added = world.call_inputs()
    time = torch.tensor(500.0, device=world.device)
    unet = world.stock().unet
    with FlopCounterMode(display=False) as counter:
        unet(sample, time, encoder_hidden_states=context, added_cond_kwargs=added)
    blocks = (m for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock")
    projections = (linear for b in blocks for linear in (b.attn2.to_k, b.attn2.to_v))
    tokens = context.shape[0] * context.shape[1]
    kept = sum(2 * tokens * linear.weight.numel() for linear in projections)
    return float(counter.get_total_flops() - kept)


@torch.inference_mode()
def step_times(world: World, engine: Engine) -> Row:
    """A guided call without a graph: until the device has finished, and until the host has
    launched it."""
    _become(engine, world)
    key, sample, context, added = world.call_inputs()
    time = torch.tensor(500.0, device=world.device)
    engine.unet.start(key, context, added)
    call = partial(engine.unet.run, key, sample, time, context, added)
    rounds = max(5, world.scale.rounds)
    samples = [world.timed_ms(call) for _ in range(rounds)]
    host = [world.host_ms(call) for _ in range(rounds)]
    return {
        "step_ms": median(samples[2:]), "host_ms": median(host[2:]),
        "tflop": step_flop(world) / 1e12, "samples": {"step_ms": samples, "host_ms": host},
    }  # fmt: skip


@torch.inference_mode()
def profile_step(world: World, engine: Engine) -> Row:
    """The kernels of one call, by time."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    key, sample, context, added = world.call_inputs()
    time = torch.tensor(500.0, device=world.device)
    engine.unet.start(key, context, added)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if world.is_cuda else [])]
    with profile(activities=activities) as profiler:
        engine.unet.run(key, sample, time, context, added)
        world.synchronize()
    which = "self_device_time_total" if world.is_cuda else "self_cpu_time_total"
    device_type = DeviceType.CUDA if world.is_cuda else DeviceType.CPU
    # Operators carry the time of their kernels, too: the kernels alone.
    found = [e for e in profiler.key_averages() if e.device_type == device_type]
    events = sorted(found, key=lambda e: -getattr(e, which))
    kernels = [
        {"name": event.key[:120], "count": event.count, "ms": getattr(event, which) / 1000}
        for event in events[:40]
    ]
    return {"busy_ms": sum(getattr(e, which) for e in events) / 1000, "kernels": kernels}


@torch.inference_mode()
def capture_is_exact(world: World, engine: Engine) -> Row:
    """A replay against the same call without a graph, bit by bit, with several recipes; and how
    long each takes."""
    key, sample, context, added = world.call_inputs()
    time = torch.tensor(500.0, device=world.device)
    with engine.unet.warming():
        engine.unet.start(key, context, added)
    if key not in engine.unet.graphs:
        raise AssertionError("the call could not be captured; the log says why")
    other_inputs = world.call_inputs(seed=6)
    for lora in (None, 0, 1, None):
        _become(engine, world, lora)
        for _, given, prompt, vectors in ((key, sample, context, added), other_inputs):
            replay = engine.unet.start(key, prompt, vectors)
            graphed = replay(given, time).clone()
            plain = engine.unet.run(key, given, time, prompt, vectors)
            if not torch.equal(graphed, plain):
                raise AssertionError(f"a replay differs: {relative(graphed, plain):.2e}")
    replay = engine.unet.start(key, context, added)
    call = partial(replay, sample, time)
    rounds = max(5, world.scale.rounds)
    samples = [world.timed_ms(call) for _ in range(rounds)]
    host = [world.host_ms(call) for _ in range(rounds)]
    return {
        "equal": True, "step_ms": median(samples[2:]), "host_ms": median(host[2:]),
        "pool_bytes": engine.unet.pool_bytes, "samples": {"step_ms": samples, "host_ms": host},
    }  # fmt: skip


@torch.inference_mode()
def batches(world: World, engine: Engine) -> Row:
    """Images a second at 1, 2, 4 and 8 images at once, from the times of a step and a decoding."""
    row: dict[str, Any] = {}
    decode_ms = _decode_ms(world, engine, world.request())
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
    return {**row, "decode_ms": decode_ms, **_memory(world)}


def _decode_ms(world: World, engine: Engine, request: DrawRequest) -> float:
    side = world.scale.side // 8
    latents = torch.randn(1, 4, side, side, device=world.device)
    spent = [
        world.timed_ms(lambda: list(engine._decode(latents, request)))
        for _ in range(max(5, world.scale.rounds // 3))
    ]
    return median(spent[2:])


# Whole images


def warm_up(world: World, engine: Engine, guided: tuple[bool, ...] = (True, False)) -> Row:
    """Compile, capture and plan everything for one image of the native size."""
    before, free = compilations(), _free_bytes(world)
    side = world.scale.side
    spent_ms = world.timed_ms(lambda: engine.warm_up([(side, side)], (1,), guided))
    after = compilations()
    return {
        "warm_up_s": spent_ms / 1000,
        **{name: after[name] - before[name] for name in after},
        "captured": len(engine.unet.graphs),
        "pool_bytes": engine.unet.pool_bytes,
        "taken_bytes": free - _free_bytes(world),  # graphs have memory beside their pool
    }


def _free_bytes(world: World) -> int:
    return torch.cuda.mem_get_info(world.device)[0] if world.is_cuda else 0


def no_fallback(world: World, engine: Engine, count: int) -> Row:
    """Mixed recipes: every step is a replay and nothing falls back or is compiled."""
    before, graphs = engine.unet.fallbacks.total(), compilations()["graphs"]
    for recipe in world.recipes(count):
        world.generate(engine, world.request(recipe, steps=2))
    row = {
        "recipes": count,
        "fallbacks": engine.unet.fallbacks.total() - before,
        "compiled_again": compilations()["graphs"] - graphs,
    }
    if row["fallbacks"] or row["compiled_again"]:
        raise AssertionError(f"not everything was warm: {row}")
    return row


def images(
    world: World,
    engine: Engine,
    rivals: tuple[str, ...],
    rounds: int,
    matrix_tflops: float,
    left_s: Callable[[], float],
) -> Row:
    """Whole images, interleaved: ours with the same recipe (nothing restored), ours with another
    LoRA each time, and stock diffusers. Every prompt is a new one, so that its encoding is in
    all of them. Ends early when little time is left."""
    side, rows, kept = world.scale.side, dict[str, list[float]](), dict[str, Any]()
    key = world.call_inputs()[0]
    if key not in engine.unet.graphs:
        raise AssertionError("the image's call was not captured")

    def measure(name: str, work: Callable[[], Any]) -> None:
        rows.setdefault(name, []).append(world.timed_ms(lambda: kept.__setitem__(name, work())))

    before = engine.unet.fallbacks.total()
    for index in range(len(world.loras)):  # resident, as popular ones are
        world.generate(engine, world.request(world.with_lora(index), steps=2))
    pipelines = {
        rival: world.stock("its best" if rival == "its best" else "as it comes") for rival in rivals
    }
    for index in range(rounds):
        if index > 1 and left_s() < 25:
            break
        prompt = f"{PROMPT} {index}"
        _become(engine, world)  # the restore of the last LoRA is not this image's cost
        same = world.request(prompt=prompt)
        another = world.request(world.with_lora(index), prompt=prompt)
        measure("same_recipe_ms", partial(world.generate, engine, same))
        measure("another_lora_ms", partial(world.generate, engine, another))
        if index < 6:
            _become(engine, world)
            measure("same_prompt_ms", partial(world.generate, engine, same))
        for name in ("same_recipe_ms", "another_lora_ms"):
            drawing: Drawing = kept[name]
            prefix = name.removesuffix("_ms")
            for phase in ("swap", "encode_prompt", "denoise", "decode", "encode_image"):
                spent_ms = getattr(drawing.timings, f"{phase}_ms")
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
    """dB, over all levels."""
    pictures = [np.asarray(image.convert("RGB"), np.float64) for image in (
        Image.open(io.BytesIO(ours)), theirs,
    )]  # fmt: skip
    error = float(np.mean((pictures[0] - pictures[1]) ** 2))
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


@torch.inference_mode()
def around(world: World, engine: Engine) -> Row:
    """What an image needs beside its steps: text encoders, VAE, JPEG and PNG."""
    _become(engine, world)
    texts: Any = {"text_encoder": "a red star", "text_encoder_2": "a red star"}
    text_ms = [world.timed_ms(lambda: engine._text.encode(texts, {})) for _ in range(8)]
    side = world.scale.side
    latents = torch.randn(1, 4, side // 8, side // 8, device=world.device)
    ((_, decoded),) = engine._decode(latents, world.request())
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
        "vae_ms": _decode_ms(world, engine, world.request()),
        "vae_float32_ms": median(exact_ms[1:]),
        "vae_psnr_db": 99.0 if error == 0 else float(10 * np.log10(4 / error)),
        "jpeg_ms": median(jpeg), "png_ms": median(png),
    }  # fmt: skip


def stock_lora(world: World) -> Row:
    """Stock's way to a LoRA and back, which ours is compared with: load, fuse, unfuse, unload."""
    from benchmarks.samples import write_kohya_lora
    from benchmarks.swap import stock_lora as there_and_back

    shm = Path("/dev/shm")
    with TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        path = write_kohya_lora(
            Path(folder) / "lora.safetensors", world.manifest.skeleton,
            rank=world.scale.rank, strength=0.1, linears=True,
        )  # fmt: skip
        spent_ms = [world.timed_ms(lambda: there_and_back(world.stock(), path)) for _ in range(2)]
    world.forget("as it comes")  # peft has wrapped its layers
    return {"there_and_back_ms": spent_ms[-1], "first_ms": spent_ms[0]}


# One thing at a time


@torch.inference_mode()
def attention_backends(world: World) -> Row:
    """The four shapes of SDXL's attention (guided, batch 1) by backend, milliseconds."""
    config = world.scale.configs["unet"]
    widths = config["block_out_channels"][1:]
    heads = config["attention_head_dim"][1:]
    dtype = torch.float16 if world.is_cuda else torch.float32
    row: dict[str, Any] = {}
    for level, (width, count) in enumerate(zip(widths, heads, strict=True), 1):
        pixels = (world.scale.side // 8 // 2**level) ** 2
        query = torch.randn(2, count, pixels, width // count, device=world.device, dtype=dtype)
        for tokens, kind in ((pixels, "self"), (77, "cross")):
            key = torch.randn(2, count, tokens, width // count, device=world.device, dtype=dtype)
            for backend in ATTENTION if world.is_cuda else ("math",):
                name = f"{kind}_{pixels}_{backend}_ms"
                try:
                    with attention_order((backend,)):  # type: ignore[arg-type]
                        call = partial(
                            torch.nn.functional.scaled_dot_product_attention, query, key, key
                        )
                        row[name] = median([world.timed_ms(call) for _ in range(12)][4:])
                except RuntimeError as error:
                    row[name] = str(error)[:100]
    return row


@torch.inference_mode()
def fused_projections(world: World) -> Row:
    """Query, key and value as three products or as one, at the inner resolution."""
    width = world.scale.configs["unet"]["block_out_channels"][-1]
    rows = 2 * (world.scale.side // 8 // 4) ** 2
    dtype = torch.float16 if world.is_cuda else torch.float32
    make = partial(torch.randn, device=world.device, dtype=dtype)
    hidden, three = make(rows, width), make(3 * width, width)
    parts = three.chunk(3)
    linear = torch.nn.functional.linear
    many = partial(lambda: [linear(hidden, part) for part in parts])
    separate = [world.timed_ms(many) for _ in range(20)]
    fused = [world.timed_ms(partial(linear, hidden, three)) for _ in range(20)]
    return {"separate_ms": median(separate[5:]), "fused_ms": median(fused[5:])}


@torch.inference_mode()
def convolutions(world: World) -> Row:
    """A step with cuDNN's heuristics and with its own timing of algorithms."""
    row: dict[str, Any] = {}
    engine = world.engine(EngineOptions(graphs="off"), "plain")
    _become(engine, world)
    key, sample, context, added = world.call_inputs()
    time = torch.tensor(500.0, device=world.device)
    engine.unet.start(key, context, added)
    call = partial(engine.unet.run, key, sample, time, context, added)
    before = torch.backends.cudnn.benchmark
    try:
        for name, timed in (("heuristics_ms", False), ("timed_ms", True)):
            torch.backends.cudnn.benchmark = timed
            row[name] = median([world.timed_ms(call) for _ in range(8)][3:])
    finally:
        torch.backends.cudnn.benchmark = before
    world.forget("plain")
    return row


#: What :func:`savings` compares with everything on.
WITHOUT = {
    "everything off": EngineOptions(graphs="off", keep_cross_kv=False, prompt_cache_bytes=0),
    "no graphs": EngineOptions(graphs="off"),
    "keys and values in every step": EngineOptions(keep_cross_kv=False),
    "no prompt cache": EngineOptions(prompt_cache_bytes=0),
}


def savings(world: World, compared: EngineOptions) -> Row:
    """Each exact saving on and off, interleaved: one image of the same recipe and one with another
    LoRA. Ratios are off ÷ on. ``compared`` gives what is the same for all."""

    def on_top(options: EngineOptions) -> EngineOptions:
        switches = ("graphs", "keep_cross_kv", "prompt_cache_bytes")
        changed = {n: getattr(options, n) for n in switches}
        if changed["graphs"] == "auto":
            changed["graphs"] = compared.graphs
        return replace(compared, **changed)

    options = {"all": EngineOptions(), **WITHOUT}
    engines = {n: world.engine(on_top(chosen), f"saving: {n}") for n, chosen in options.items()}
    side = world.scale.side
    images: dict[str, set[bytes]] = {}
    rows: dict[str, list[float]] = {}
    for engine in engines.values():
        engine.warm_up([(side, side)], (1,), (True,))
    negative: dict[str, Any] = {"negative_prompt": "blurred, dark"}
    for index in range(max(3, world.scale.rounds // 3)):
        requests = {
            "same": world.request(**negative, encoding="png"),
            "lora": world.request(world.with_lora(index), **negative, encoding="png"),
        }
        for name, engine in engines.items():
            for kind, request in requests.items():
                kept = images.setdefault(f"{kind} {index if kind == 'lora' else ''}", set())
                spent = world.timed_ms(partial(_kept, kept, world, engine, request))
                rows.setdefault(f"{kind}, {name}", []).append(spent)
    row: dict[str, Any] = {"bit_equal": all(len(found) == 1 for found in images.values())}
    for kind in ("same", "lora"):
        with_all = rows[f"{kind}, all"][1:]
        row[f"{kind}_ms"] = median(with_all)
        for name in WITHOUT:  # round by round: a machine's speed drifts
            pairs = zip(rows[f"{kind}, {name}"][1:], with_all, strict=True)
            row[f"{kind}: {name}"] = median([without / with_it for without, with_it in pairs])
    world.forget(*(f"saving: {name}" for name in options))
    return {**row, "samples": rows}


@torch.inference_mode()
def call_times(world: World, engine: Engine) -> Row:
    """What the host does for a call of the UNet: eagerly, and for a replay apart from the launch.
    On a CPU a replay computes, too: its stand-in."""
    key, sample, context, added = world.call_inputs()
    time = torch.tensor(500.0, device=world.device)
    with engine.unet.warming():
        engine.unet.start(key, context, added)
    replay = engine.unet.start(key, context, added)
    nothing = Replay(replay.static, Captured(lambda: None, replay.output))  # type: ignore[attr-defined]
    calls = {
        "eager_ms": partial(engine.unet.run, key, sample, time, context, added),
        "replay_ms": partial(replay, sample, time),
        "copies_ms": partial(nothing, sample, time),
    }
    rows: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(5, 2 * world.scale.rounds)):
        for name, call in calls.items():
            rows[name].append(world.host_ms(call))
    medians = {name: median(samples[2:]) for name, samples in rows.items()}
    return {
        **medians, "eager_over_replay": medians["eager_ms"] / medians["replay_ms"],
        "eager_over_copies": medians["eager_ms"] / medians["copies_ms"], "samples": rows,
    }  # fmt: skip


def overlap(world: World, engine: Engine) -> Row:
    """Several requests one after another on one replica: images encoded by the thread that
    generates, and beside it. Large images of one step, as PNG."""

    class Beside(Replica):
        """A replica whose images the generating thread encodes, as a rival."""

        def _draw(self, *arguments: Any) -> Any:
            rendered = super()._draw(*arguments)
            for image in rendered.images:
                image.result()
            return rendered

    side = 4 * world.scale.side if not world.is_cuda else world.scale.side
    steps = 1 if not world.is_cuda else 4
    asked = [
        world.request(seeds=(seed,), width=side, height=side, steps=steps, encoding="png")
        for seed in range(4)
    ]

    async def all_of(replica: Replica) -> list[tuple[bytes, ...]]:
        answers = await asyncio.gather(*(replica.draw(request) for request in asked))
        return [drawing.images for drawing, _ in answers]

    rivals: dict[str, Replica] = {"beside_ms": Replica(engine), "in_turn_ms": Beside(engine)}
    rows: dict[str, list[float]] = {name: [] for name in rivals}
    kept: list[Any] = []
    for _ in range(max(3, world.scale.rounds // 5)):
        for name, replica in rivals.items():
            rows[name].append(world.timed_ms(lambda r=replica: kept.append(asyncio.run(all_of(r)))))  # type: ignore[misc]
    for replica in rivals.values():
        replica.close()
    medians = {name: median(samples[1:]) for name, samples in rows.items()}
    return {
        **medians, "in_turn_over_beside": medians["in_turn_ms"] / medians["beside_ms"],
        "equal": all(images == kept[0] for images in kept), "samples": rows,
    }  # fmt: skip


def _kept(kept: set[bytes], world: World, engine: Engine, request: DrawRequest) -> None:
    kept.update(world.generate(engine, request).images)


# A small card, and a busy one


def small_card(world: World, options: EngineOptions, gibibytes: float = 24.0) -> Row:
    """What fits beside the working weights on a card of 24 GB, whose pristine weights lie in host
    memory. The world's values stay where they are, leased, and are not under the limit; a
    gibibyte of it is the context's and the kernels'."""
    leases = [world.tier.lease(key) for key in world.tier.resident()]
    if world.is_cuda:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(world.device).total_memory
        held = torch.cuda.memory_reserved(world.device)
        limit = min(1.0, (held + (gibibytes - 1) * 2**30) / total)
        torch.cuda.set_per_process_memory_fraction(limit, world.device)
        torch.cuda.reset_peak_memory_stats(world.device)
    try:
        engine = world.engine(options, "small")
        side = world.scale.side
        row: dict[str, Any] = {}
        for batch in (1, 2, 4):
            seeds = tuple(range(batch))
            try:
                engine.warm_up([(side, side)], (batch,))
                drawn = world.generate(engine, world.request(seeds=seeds, steps=2))
                row[f"fits_{batch}"] = len(drawn.images) == batch
            except Exception as error:
                row[f"fits_{batch}"] = f"{type(error).__name__}: {error}"[:200]
            if world.is_cuda:
                used = torch.cuda.max_memory_allocated(world.device) - held
                row[f"peak_bytes_{batch}"] = used
        row["pool_bytes"] = engine.unet.pool_bytes
    finally:
        if world.is_cuda:
            torch.cuda.set_per_process_memory_fraction(1.0, world.device)
        world.forget("small")
        for lease in leases:
            if lease is not None:
                lease.release()
    return row


def soak(world: World, engine: Engine) -> Row:
    """Images one after another while assets arrive and leave in another thread: every image
    equals the one generated alone, and memory stays level."""
    alone = {
        index: world.generate(engine, world.request(world.with_lora(index), encoding="png")).images
        for index in range(len(world.loras))
    }
    stop = threading.Event()
    arrived: list[float] = []
    failures: list[BaseException] = []
    reserved: list[int] = []
    size_bytes = world.other_unet.size_bytes

    host = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=world.is_cuda)

    def arrive() -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1

                def load() -> Any:
                    with engine.shelf._arriving():
                        target = torch.empty(size_bytes, dtype=torch.uint8, device=world.device)
                        return target.copy_(host, non_blocking=True)

                spent = world_clock(partial(_admit, world, f"arrival-{number}", size_bytes, load))
                arrived.append(spent)
                world.tier.forget(f"arrival-{number}")
                stop.wait(0.05)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=arrive)
    thread.start()
    spent_ms: list[float] = []
    wrong = 0
    total_ms = 0.0
    try:
        while total_ms < world.scale.soak_s * 1000:
            index = len(spent_ms) % len(world.loras)
            request = replace(world.request(world.with_lora(index)), encoding="png")
            kept: list[Any] = []
            spent_ms.append(
                world_clock(partial(_generate_into, kept, world, engine, request)) * 1000
            )
            total_ms += spent_ms[-1]
            wrong += kept[0] != alone[index]
            if world.is_cuda:
                reserved.append(torch.cuda.memory_reserved(world.device))
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
    if wrong:
        raise AssertionError(f"{wrong} of {len(spent_ms)} images differ beside arrivals")
    row = {
        "images": len(spent_ms), "arrivals": len(arrived), "wrong": wrong,
        "median_ms": median(spent_ms),
        "p95_over_median": float(np.quantile(spent_ms, 0.95)) / median(spent_ms),
        "maximum_over_median": max(spent_ms) / median(spent_ms),
        "samples": {"image_ms": spent_ms, "arrival_s": arrived},
    }  # fmt: skip
    if reserved:
        row["reserved_growth_bytes"] = reserved[-1] - reserved[len(reserved) // 3]
    return row


def world_clock(work: Callable[[], Any]) -> float:
    """Seconds of the host's clock."""
    import time

    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _admit(world: World, key: str, size_bytes: int, load: Callable[[], Any]) -> None:
    lease, _ = world.tier.admit(key, size_bytes, load)
    lease.release()


def _generate_into(kept: list[Any], world: World, engine: Engine, request: DrawRequest) -> None:
    kept.append(world.generate(engine, request).images)
