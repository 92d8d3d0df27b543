"""Single kernels: alternatives measured one at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.document import Document
from benchmarks.gpu.stages import Row
from benchmarks.gpu.unet_calls import profile_step, switch_to
from benchmarks.gpu.world import World, median
from serving.engine.attention import attention_order
from serving.engine.options import AttentionBackend, EngineOptions

ATTENTION: tuple[AttentionBackend, ...] = ("cudnn", "flash", "efficient", "math")
#: Calls of one measurement.
_CALLS = 20


def call_ms(world: World, call: Callable[[], object]) -> float:
    """Return one call's time on the device: ``_CALLS`` of them as one graph, without launches."""
    if not world.is_cuda:
        return median([world.timed_ms(call) for _ in range(12)][4:])
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CALLS):
            call()
    return median([world.timed_ms(graph.replay) for _ in range(8)][3:]) / _CALLS


@torch.inference_mode()
def attention_backends(world: World) -> Row:
    """Time SDXL's four shapes (guided, batch 1) by backend, in ms."""
    config = world.scale.configs["unet"]
    widths = config["block_out_channels"][1:]
    heads = config["attention_head_dim"][1:]
    dtype = torch.float16 if world.is_cuda else torch.float32
    row: Document = {}
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
                        row[name] = call_ms(world, call)
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
    return {
        "separate_ms": call_ms(world, lambda: [linear(hidden, part) for part in parts]),
        "fused_ms": call_ms(world, partial(linear, hidden, three)),
    }


def convolutions(world: World) -> Row:
    """Sum an eager step's kernels with cuDNN's heuristics and with its benchmark mode."""
    row: Document = {}
    engine = world.engine(EngineOptions(graphs="off"), "plain")
    switch_to(engine, world)
    before = torch.backends.cudnn.benchmark
    try:
        for name, timed in (("heuristics_ms", False), ("timed_ms", True)):
            torch.backends.cudnn.benchmark = timed
            profile_step(world, engine)  # plans
            row[name] = profile_step(world, engine)["busy_ms"]
    finally:
        torch.backends.cudnn.benchmark = before
    world.forget("plain")
    return row
