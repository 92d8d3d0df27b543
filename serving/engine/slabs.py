"""Slabs: all parameters of one shape in one tensor, so that one product changes many.

SDXL's 722 LoRA-bearing linear layers have seven shapes; the products are bit-equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from assets.content import Component
from assets.families.schema import ParameterSchema, Shape, stacked
from assets.formats.tensors import TensorFile
from serving.engine.loading import StagingRing, fill_stack, prefer_huge_pages


@dataclass(frozen=True, slots=True)
class SlabPosition:
    """A parameter's row in the slab of its shape."""

    shape: Shape
    row: int


class SlabLayout:
    """The places of a component's parameters, ordered by ``assets.families.schema.stacked``: rows
    that change together are adjacent."""

    def __init__(self, parameters: Mapping[str, Shape], channels_last: bool = False) -> None:
        """``channels_last`` is cuDNN's fastest order."""
        self._channels_last = channels_last
        self.rows: Mapping[Shape, tuple[str, ...]] = stacked(parameters)
        self.places: Mapping[str, SlabPosition] = {
            name: SlabPosition(shape, row)
            for shape, names in self.rows.items()
            for row, name in enumerate(names)
        }

    def allocate(self, device: torch.device, dtype: torch.dtype, pinned: bool = False) -> Slabs:
        """Return uninitialized slabs, ``pinned`` for copies to a GPU."""

        def slab(shape: Shape, count: int) -> torch.Tensor:
            permuted = self._channels_last and len(shape) == 4
            extents = (shape[0], shape[2], shape[3], shape[1]) if permuted else shape
            slab = torch.empty((count, *extents), device=device, dtype=dtype, pin_memory=pinned)
            if not pinned:
                prefer_huge_pages(slab)
            return slab.permute(0, 1, 4, 2, 3) if permuted else slab

        return {shape: slab(shape, len(names)) for shape, names in self.rows.items()}

    def size_bytes(self, dtype: torch.dtype, pinned: bool = False) -> int:
        """PyTorch rounds pinned memory up to powers of two."""
        sizes = [len(n) * _numel(s) * dtype.itemsize for s, n in self.rows.items()]
        return sum(1 << (size - 1).bit_length() if pinned else size for size in sizes)


#: shape → tensor of [rows, *shape]
Slabs = dict[Shape, torch.Tensor]


def _numel(shape: Shape) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def layouts_of(schema: ParameterSchema, channels_last: bool = False) -> dict[Component, SlabLayout]:
    return {
        component: SlabLayout(names, channels_last)
        for component, names in schema.components.items()
    }


def load_slabs(
    file: TensorFile,
    layout: SlabLayout,
    device: torch.device,
    dtype: torch.dtype,
    pinned: bool = False,
    spare: Slabs | None = None,
) -> Slabs:
    """Load a canonical component file; overwrite ``spare`` slabs, as allocating can take longer
    than filling.

    Raises:
        KeyError: the file lacks a parameter.
    """
    slabs = layout.allocate(device, dtype, pinned) if spare is None else spare
    with StagingRing(device) as ring:
        for shape, names in layout.rows.items():
            fill_stack(file, names, slabs[shape], ring)
    return slabs
