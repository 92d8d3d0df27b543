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
    """A component's published weights. Not written to while leased."""

    slabs: Slabs
    component: Component


@dataclass(frozen=True, slots=True)
class Factors:
    """A LoRA's factors for ``rows`` of one slab, of one form and shape.

    Pieces (assets/formats/lora_kinds.py) are [rows, …] and include alpha / rank; the change is
    weight · Δ.
    """

    rows: tuple[int, ...]
    pieces: Mapping[str, torch.Tensor]

    @property
    def is_low_rank(self) -> bool:
        """Δ is ``up @ down``: no buffer needed."""
        return self.pieces.keys() == {"up", "down"}

    def change(self, part: slice, pristine: torch.Tensor) -> torch.Tensor:
        """Return Δ [n, out, in] of ``part`` (indices into ``rows``); ``pristine`` has that
        shape."""
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

#: The first of these that is present carries the scale.
_SCALED = ("kron", "up", "full")


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA: ``groups`` holds each slab's factors, one for each form."""

    groups: Mapping[tuple[Component, Shape], tuple[Factors, ...]]
    #: By trigger word.
    bundled: Mapping[str, Inversion] = field(default_factory=dict)

    @property
    def moves_text(self) -> bool:
        return any(component != "unet" for component, _ in self.groups)

    @property
    def matched(self) -> int:
        return sum(len(f.rows) for factors in self.groups.values() for f in factors)


@dataclass(frozen=True, slots=True)
class Inversion:
    """A textual inversion: [n, width] for one or both text encoders."""

    vectors: Mapping[Component, torch.Tensor]


DeviceValue = Pristine | Lora | Inversion


def load_lora(
    file: TensorFile,
    schema: ParameterSchema,
    layouts: Layouts,
    device: torch.device,
    dtype: torch.dtype,
) -> Lora:
    """Load a canonical LoRA in slab order: one read and copy per stack."""
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
    """Load a canonical textual inversion."""
    encoders = cast(list[Component], sorted(file.header.tensors))
    return Inversion({encoder: file.read(encoder).to(device, dtype) for encoder in encoders})


def elements(file: TensorFile) -> int:
    """Return the number of elements."""
    total = 0
    for info in file.header.tensors.values():
        count = 1
        for extent in info.shape:
            count *= extent
        total += count
    return total
