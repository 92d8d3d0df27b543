"""The device: its properties, peak rates and memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable

import torch

from benchmarks.document import Document
from benchmarks.gpu.stages import Row
from benchmarks.gpu.world import World, median


def facts(world: World) -> Row:
    row: Document = {
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
    """Measure peak rates: matrix product and copies."""
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

    def rate(bytes_moved: int, work: Callable[[], object]) -> float:
        return bytes_moved / median([world.timed_ms(work) for _ in range(5)]) / 1e6

    return {
        "matrix_tflops": 2 * size**3 / median(product_ms[2:]) / 1e9,
        "copy_gb_s": rate(2 * count, lambda: target.copy_(source)),
        "to_device_gb_s": rate(count, lambda: target.copy_(host, non_blocking=True)),
        "to_host_gb_s": rate(count, lambda: host.copy_(source, non_blocking=True)),
    }


def memory(world: World) -> Document:
    if not world.is_cuda:
        return {}
    return {
        "allocated_bytes": torch.cuda.memory_allocated(world.device),
        "peak_bytes": torch.cuda.max_memory_allocated(world.device),
        "reserved_bytes": torch.cuda.memory_reserved(world.device),
    }


def free_bytes(world: World) -> int:
    return torch.cuda.mem_get_info(world.device)[0] if world.is_cuda else 0
