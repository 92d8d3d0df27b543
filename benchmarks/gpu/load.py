"""Memory limits and concurrent loads: a small card, and a card on which assets come and go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.document import Document
from benchmarks.gpu.stages import Row
from benchmarks.gpu.world import World, median
from serving.engine.engine import Engine
from serving.engine.options import EngineOptions
from serving.engine.values import DeviceValue
from serving.generation.contract import GenerationTask


def small_card(world: World, options: EngineOptions, gibibytes: float = 24.0) -> Row:
    """Test which batches fit on a card of ``gibibytes`` with pristine weights in host memory.

    Leased values do not count; one GiB is for CUDA's context and kernels.
    """
    leases = [world.tier.lease(key) for key in world.tier.resident()]
    if world.is_cuda:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(world.device).total_memory
        held = torch.cuda.memory_reserved(world.device)
        limit = min(1.0, (held + (gibibytes - 1) * 2**30) / total)
        torch.cuda.set_per_process_memory_fraction(limit)
        torch.cuda.reset_peak_memory_stats(world.device)
    try:
        engine = world.engine(options, "small")
        side = world.scale.side
        row: Document = {}
        for batch in (1, 2, 4):
            seeds = tuple(range(batch))
            try:
                engine.warm_up([(side, side)], (batch,))
                generated = world.generate(engine, world.request(seeds=seeds, steps=2))
                row[f"fits_{batch}"] = len(generated.images) == batch
            except Exception as error:
                row[f"fits_{batch}"] = f"{type(error).__name__}: {error}"[:200]
            if world.is_cuda:
                used = torch.cuda.max_memory_allocated(world.device) - held
                row[f"peak_bytes_{batch}"] = used
        row["pool_bytes"] = engine.unet.pool_bytes
    finally:
        if world.is_cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
        world.forget("small")
        for lease in leases:
            if lease is not None:
                lease.release()
    return row


def soak(world: World, engine: Engine) -> Row:
    """Generate while assets load and drop; return the growth of reserved memory.

    Raises:
        AssertionError: an image differs from one without loads.
    """
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
                    with engine.device_cache._arriving():
                        target = torch.empty(size_bytes, dtype=torch.uint8, device=world.device)
                        return target.copy_(host, non_blocking=True)

                spent = _seconds(partial(_admit, world, f"arrival-{number}", size_bytes, load))
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
            request = world.request(world.with_lora(index), encoding="png")
            kept: list[Any] = []
            spent_ms.append(_seconds(partial(_generate_into, kept, world, engine, request)) * 1000)
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
        raise AssertionError(f"{wrong} of {len(spent_ms)} images differ while assets are loaded")
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


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _admit(world: World, key: str, size_bytes: int, load: Callable[[], DeviceValue]) -> None:
    lease, _ = world.tier.admit(key, size_bytes, load)
    lease.release()


def _generate_into(kept: list[Any], world: World, engine: Engine, request: GenerationTask) -> None:
    kept.append(world.generate(engine, request).images)
