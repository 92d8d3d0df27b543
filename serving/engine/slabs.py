"""Slabs: parameters of one shape in one tensor, so that many change in one product.

SDXL's 722 LoRA-bearing linear layers have seven shapes; with slabs a swap is seven
batched products, bit-equal to 722 single ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from assets.content import Component
from assets.formats.tensors import TensorFile
from assets.skeleton import Shape, Skeleton


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter lies: row ``row`` of the slab of its shape."""

    shape: Shape
    row: int


class SlabLayout:
    """The places of one component's parameters.

    Rows are ordered by role first (``attn1.to_q.weight`` of every block together), so
    that what adapters touch together lies together and is written in few products.
    """

    def __init__(self, parameters: Mapping[str, Shape]) -> None:
        by_shape: dict[Shape, list[str]] = {}
        for name in sorted(parameters, key=lambda name: (_role(name), name)):
            by_shape.setdefault(parameters[name], []).append(name)
        self.rows: Mapping[Shape, tuple[str, ...]] = {s: tuple(n) for s, n in by_shape.items()}
        self.places: Mapping[str, Place] = {
            name: Place(shape, row)
            for shape, names in self.rows.items()
            for row, name in enumerate(names)
        }

    def allocate(self, device: torch.device, dtype: torch.dtype) -> Slabs:
        return {
            shape: torch.empty((len(names), *shape), device=device, dtype=dtype)
            for shape, names in self.rows.items()
        }

    def size_bytes(self, dtype: torch.dtype) -> int:
        return sum(len(n) * _numel(s) for s, n in self.rows.items()) * dtype.itemsize


#: shape → tensor of [rows, *shape]
Slabs = dict[Shape, torch.Tensor]


def _numel(shape: Shape) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _role(name: str) -> str:
    return ".".join(part for part in name.split(".")[-4:] if not part.isdigit())


def layouts_of(skeleton: Skeleton) -> dict[Component, SlabLayout]:
    return {component: SlabLayout(names) for component, names in skeleton.components.items()}


def load_slabs(
    file: TensorFile, layout: SlabLayout, device: torch.device, dtype: torch.dtype
) -> Slabs:
    """Pristine slabs of a canonical component file: one read and one copy a tensor.

    Raises:
        KeyError: the file lacks a parameter (a canonical file never does).
    """
    slabs = layout.allocate(device, dtype)
    for name, place in layout.places.items():
        slabs[place.shape][place.row].copy_(file.read(name))
    return slabs
