"""The order in which CUDA's attention kernels are tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from serving.engine.options import AttentionBackend

_BACKENDS: dict[AttentionBackend, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def default_order(device: str) -> tuple[AttentionBackend, ...]:
    """cuDNN's kernels are the faster ones on Hopper and later, FlashAttention's before it."""
    if not device.startswith("cuda"):
        return ()
    major, _ = torch.cuda.get_device_capability(device)
    if major >= 9:
        return ("cudnn", "flash", "efficient", "math")
    return ("flash", "efficient", "cudnn", "math")


@contextmanager
def attention_order(order: Sequence[AttentionBackend]) -> Iterator[None]:
    """Within it, attention takes the first of ``order`` that can compute it; with an empty
    order, what PyTorch takes. Compiled code and captured graphs keep what was taken then."""
    if not order:
        yield
        return
    with sdpa_kernel([_BACKENDS[name] for name in order], set_priority=True):
        yield
