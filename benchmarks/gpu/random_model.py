"""Random weights and LoRAs in device memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch

from assets.content import Component
from assets.families.schema import Shape
from serving.engine.slabs import SlabLayout
from serving.engine.values import Factors
from tests.support.samples import reached_by_trainers


def random_slabs(
    layout: SlabLayout, device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> dict[Shape, torch.Tensor]:
    """Make random weights; biases are 0 and norms 1, which keeps predictions finite."""
    slabs = layout.allocate(device, dtype)
    for shape, names in layout.rows.items():
        for row, name in enumerate(names):
            if name.endswith(".bias"):
                slabs[shape][row].zero_()
            elif len(shape) == 1:
                slabs[shape][row].fill_(1)
            else:
                scale = 0.5 / math.prod(shape[1:]) ** 0.5
                slabs[shape][row].normal_(0, scale, generator=generator)
    return slabs


def random_lora(
    layouts: Mapping[Component, SlabLayout],
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator,
    rank: int,
) -> dict[tuple[Component, Shape], tuple[Factors]]:
    """Make a LoRA on the 722, 72 and 192 linear layers that trainers usually cover."""
    groups: dict[tuple[Component, Shape], tuple[Factors]] = {}
    parts = ("unet", "text_encoder", "text_encoder_2")
    for component in cast(tuple[Component, ...], parts):
        for shape, names in layouts[component].rows.items():
            rows = tuple(
                row for row, name in enumerate(names)
                if len(shape) == 2 and reached_by_trainers(name)
            )  # fmt: skip
            if not rows:
                continue
            make: Any = torch.empty
            up = make((len(rows), shape[0], rank), device=device, dtype=dtype)
            down = make((len(rows), rank, shape[1]), device=device, dtype=dtype)
            up.normal_(0, 0.1 / (shape[1] * rank) ** 0.5, generator=generator)
            down.normal_(0, 1, generator=generator)
            groups[component, shape] = (Factors(rows, {"up": up, "down": down}),)
    return groups
