"""The values of the device tier: pristine components, LoRAs and textual inversions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch

from assets.content import Component
from assets.families.schema import ParameterSchema, Shape
from assets.formats.lora import BUNDLE, SCALES, stacks
from assets.formats.tensors import TORCH_DTYPES, TensorFile
from serving.engine.devices import to_device
from serving.engine.loading import StagingRing, fill_stack
from serving.engine.slabs import SlabLayout, Slabs


@dataclass(frozen=True, slots=True)
class Pristine:
    """The published weights of a component. Never written to while leased."""

    slabs: Slabs
    component: Component


@dataclass(frozen=True, slots=True)
class Factors:
    """A LoRA's factors for ``rows`` of one slab, all of the same form and shapes.

    Each piece (see assets/formats/lora_kinds.py) is [rows, …] and includes alpha / rank. At weight
    w the change is w · Δ for every kind of LoRA.
    """

    rows: tuple[int, ...]
    pieces: Mapping[str, torch.Tensor]

    @property
    def is_low_rank(self) -> bool:
        """Whether Δ is just ``up @ down``, which is added without a buffer for Δ."""
        return self.pieces.keys() == {"up", "down"}

    def change(self, part: slice, pristine: torch.Tensor) -> torch.Tensor:
        """Return Δ [n, out, in] of the rows ``part`` (indices into ``rows``); ``pristine`` are the
        parameters' pristine values, [n, out, in]."""
        pieces = {name: tensor[part] for name, tensor in self.pieces.items()}
        inner = pieces["full"] if "full" in pieces else torch.bmm(pieces["up"], pieces["down"])
        if "up_2" in pieces:
            inner = inner * torch.bmm(pieces["up_2"], pieces["down_2"])
        if "kron" in pieces:
            kron = pieces["kron"]
            whole = kron[:, :, None, :, None] * inner[:, None, :, None, :]
            count, a, c, b, d = whole.shape
            inner = whole.reshape(count, a * c, b * d)
        if "magnitude" in pieces:
            whole = pristine.float() + inner
            lengths = whole.norm(dim=2, keepdim=True)
            inner = whole * (pieces["magnitude"][:, :, None] / lengths) - pristine
        if "magnitude_in" in pieces:
            magnitudes = pieces["magnitude_in"]
            columns = (pristine.float() + inner).reshape(*inner.shape[:2], magnitudes.shape[1], -1)
            lengths = columns.norm(dim=(1, 3), keepdim=True)
            rescaled = columns * (magnitudes[:, None, :, None] / lengths)
            inner = rescaled.flatten(2) - pristine
        return inner.to(pristine.dtype)


Layouts = Mapping[Component, SlabLayout]

#: Pieces that may carry the scale; the first one present does.
_SCALED = ("kron", "up", "full")


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA: ``groups[component, shape]`` holds the factors for one slab, one for each form."""

    groups: Mapping[tuple[Component, Shape], tuple[Factors, ...]]
    #: Textual inversions bundled in the LoRA's file, by trigger word.
    bundled: Mapping[str, Inversion] = field(default_factory=dict)

    @property
    def moves_text(self) -> bool:
        """Whether the LoRA changes a text encoder."""
        return any(component != "unet" for component, _ in self.groups)

    @property
    def matched(self) -> int:
        """The number of parameters that the LoRA changes."""
        return sum(len(f.rows) for factors in self.groups.values() for f in factors)


@dataclass(frozen=True, slots=True)
class Inversion:
    """A textual inversion: vectors [n, width] for one or both text encoders."""

    vectors: Mapping[Component, torch.Tensor]


DeviceValue = Pristine | Lora | Inversion


def load_lora(
    file: TensorFile,
    schema: ParameterSchema,
    layouts: Layouts,
    device: torch.device,
    dtype: torch.dtype,
) -> Lora:
    """Load a canonical LoRA onto the device. Its tensors are stacked in slab order, so that each
    stack takes one read and one copy."""
    shapes = file.header.shapes
    bundled: dict[str, dict[Component, torch.Tensor]] = {}
    for tensor in shapes:
        if tensor.startswith(BUNDLE):
            word, _, encoder = tensor.removeprefix(BUNDLE).rpartition("/")
            vectors = file.read(tensor).to(device, dtype)
            bundled.setdefault(word, {})[cast(Component, encoder)] = vectors
    lora_stacks = stacks(shapes, schema)
    names = sorted(member for _, _, members in lora_stacks for member in members)
    scales = dict(zip(names, file.read(SCALES).tolist(), strict=True))
    groups: dict[tuple[Component, Shape], tuple[Factors, ...]] = {}
    with StagingRing(device) as ring:
        for (component, shape), pieces, members in lora_stacks:
            stacked = {}
            scaled = next(piece for piece in _SCALED if piece in pieces)
            for piece in pieces:
                parts = [f"{member}.{piece}" for member in members]
                infos = [file.header.tensors[part] for part in parts]
                file_dtypes = {TORCH_DTYPES[info.dtype] for info in infos}
                stack_dtype = file_dtypes.pop() if len(file_dtypes) == 1 else torch.float32
                shape_of_stack = (len(parts), *infos[0].shape)
                stack = torch.empty(shape_of_stack, dtype=stack_dtype, device=device)
                fill_stack(file, parts, stack, ring)
                if piece == scaled:
                    factor = to_device(torch.tensor([scales[m] for m in members]), device)
                    stack = stack.float() * factor.view(-1, *[1] * (stack.ndim - 1))
                stacked[piece] = stack.to(dtype)
            places = layouts[component].places
            rows = tuple(places[member.removeprefix(f"{component}/")].row for member in members)
            factors = Factors(rows, stacked)
            groups[component, shape] = (*groups.get((component, shape), ()), factors)
    return Lora(groups, {word: Inversion(vectors) for word, vectors in bundled.items()})


def load_inversion(file: TensorFile, device: torch.device, dtype: torch.dtype) -> Inversion:
    """Load a canonical textual inversion: for the second text encoder, or for both."""
    encoders = cast(list[Component], sorted(file.header.tensors))
    return Inversion({encoder: file.read(encoder).to(device, dtype) for encoder in encoders})


def elements(file: TensorFile) -> int:
    """Return the number of elements in the file; times the item size, its bytes on the device."""
    total = 0
    for info in file.header.tensors.values():
        count = 1
        for extent in info.shape:
            count *= extent
        total += count
    return total
