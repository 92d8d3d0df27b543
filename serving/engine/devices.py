"""What there is to draw on."""

from __future__ import annotations

import torch


def pick_device(wanted: str) -> str:
    """``wanted``, where "auto" means a GPU if there is one."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_names() -> list[str]:
    """Of the GPUs that torch sees here."""
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
