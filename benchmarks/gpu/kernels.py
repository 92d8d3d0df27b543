"""Single kernels: alternatives measured one at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.gpu.stages import Row
from benchmarks.gpu.unet_calls import switch_to
from benchmarks.gpu.world import World, median
from serving.engine.attention import attention_order
from serving.engine.options import AttentionBackend, EngineOptions

ATTENTION: tuple[AttentionBackend, ...] = ("cudnn", "flash", "efficient", "math")


@torch.inference_mode()
def attention_backends(world: World) -> Row:
    """Time SDXL's four shapes (guided, batch 1) by backend, in ms."""
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
            for backend in ATTENTION if world.is_cuda else ATTENTION[-1:]:
                name = f"{kind}_{pixels}_{backend}_ms"
                try:
                    with attention_order((backend,)):
                        call = partial(
                            torch.nn.functional.scaled_dot_product_attention, query, key, key
                        )
                        row[name] = median([world.timed_ms(call) for _ in range(12)][4:])
                except RuntimeError as error:
                    row[name] = str(error)[:100]
    return row


@torch.inference_mode()
def fused_projections(world: World) -> Row:
    """Time query, key and value as three products and as one."""
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
    """Time a step with cuDNN's heuristics and benchmark mode."""
    row: dict[str, Any] = {}
    engine = world.engine(EngineOptions(graphs="off"), "plain")
    switch_to(engine, world)
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
