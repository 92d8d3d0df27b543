"""One call of the UNet: error, FLOPs, and time with and without a graph."""

from __future__ import annotations

import copy
from functools import partial

import torch

from benchmarks.gpu.stages import Row
from benchmarks.gpu.world import World, exact_convolutions, median, relative
from serving.engine.engine import Engine
from serving.engine.graphs import Captured
from serving.engine.unet import Replay


def switch_to(engine: Engine, world: World, lora: int | None = None) -> None:
    recipe = world.base if lora is None else world.with_lora(lora)
    with engine.prepare(recipe) as prepared:
        engine.switch_to(prepared)
        engine._settle()


@torch.inference_mode()
def step_is_right(world: World, engine: Engine) -> Row:
    """Compare our prediction and stock's with a float32 reference.

    Raises:
        AssertionError: our error exceeds 1.2 times stock's.
    """
    switch_to(engine, world)
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
        raise AssertionError(f"our step's error exceeds {limit:.2e}: {row}")
    return row


@torch.inference_mode()
def step_flop(world: World) -> float:
    """Count stock's FLOPs (guided, batch 1) without the prompt's keys and values."""
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
    """Time a guided call without a graph, until launched and until finished."""
    switch_to(engine, world)
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
    """Return one call's kernels by time."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    key, sample, context, added = world.call_inputs()
    time = torch.tensor(500.0, device=world.device)
    engine.unet.start(key, context, added)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if world.is_cuda else [])]
    with profile(activities=activities) as profiler:
        engine.unet.run(key, sample, time, context, added)
        world.synchronize()
    time_attribute = "self_device_time_total" if world.is_cuda else "self_cpu_time_total"
    device_type = DeviceType.CUDA if world.is_cuda else DeviceType.CPU
    # Operators include their kernels' time.
    averages = [e for e in profiler.key_averages() if e.device_type == device_type]
    events = sorted(averages, key=lambda e: -getattr(e, time_attribute))
    kernels = [
        {"name": event.key[:120], "count": event.count, "ms": getattr(event, time_attribute) / 1000}
        for event in events[:40]
    ]
    return {"busy_ms": sum(getattr(e, time_attribute) for e in events) / 1000, "kernels": kernels}


@torch.inference_mode()
def capture_is_exact(world: World, engine: Engine) -> Row:
    """Compare replays and calls bit for bit, with several recipes; time the replay.

    Raises:
        AssertionError: the call was not captured, or a replay differs.
    """
    key, sample, context, added = world.call_inputs()
    time = torch.tensor(500.0, device=world.device)
    with engine.unet.warming():
        engine.unet.start(key, context, added)
    if key not in engine.unet.graphs:
        raise AssertionError("the call could not be captured; the log has the reason")
    other_inputs = world.call_inputs(seed=6)
    for lora in (None, 0, 1, None):
        switch_to(engine, world, lora)
        for _, latents, prompt, vectors in ((key, sample, context, added), other_inputs):
            replay = engine.unet.start(key, prompt, vectors)
            graphed = replay(latents, time).clone()
            plain = engine.unet.run(key, latents, time, prompt, vectors)
            if not torch.equal(graphed, plain):
                raise AssertionError(f"a replay differs by {relative(graphed, plain):.2e}")
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
def call_times(world: World, engine: Engine) -> Row:
    """Time the host in an eager call, a replay (on a CPU a stand-in), and its copies."""
    key, sample, context, added = world.call_inputs()
    time = torch.tensor(500.0, device=world.device)
    with engine.unet.warming():
        engine.unet.start(key, context, added)
    replay = engine.unet.start(key, context, added)
    copies_only = Replay(replay.static, Captured(lambda: None, replay.output))  # type: ignore[attr-defined]
    calls = {
        "eager_ms": partial(engine.unet.run, key, sample, time, context, added),
        "replay_ms": partial(replay, sample, time),
        "copies_ms": partial(copies_only, sample, time),
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
