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
    """Return the order for ``device``; empty on a CPU.

    cuDNN is faster from Hopper on, FlashAttention on earlier GPUs.
    """
    if not device.startswith("cuda"):
        return ()
    major, _ = torch.cuda.get_device_capability(device)
    if major >= 9:
        return ("cudnn", "flash", "efficient", "math")
    return ("flash", "efficient", "cudnn", "math")


@contextmanager
def attention_order(order: Sequence[AttentionBackend]) -> Iterator[None]:
    """Use the first backend of ``order`` that supports a call; empty means PyTorch's.

    Compiled code and captured graphs keep theirs.
    """
    if not order:
        yield
        return
    with sdpa_kernel([_BACKENDS[name] for name in order], set_priority=True):
        yield
