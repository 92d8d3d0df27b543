"""What the GPU tier holds for the engine: pristine components, factors, vectors."""

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
    """A component's weights as they were published. Never written to."""

    slabs: Slabs
    component: Component


@dataclass(frozen=True, slots=True)
class Factors:
    """Part of a LoRA: its pieces for ``rows`` of one slab, all of the same shapes.

    Each piece (see assets/formats/lora_kinds.py) is [rows, …]; alpha / rank is multiplied in.
    At weight w the change is w · Δ, of whatever kind: at 1 what was trained, at 0 nothing.
    """

    rows: tuple[int, ...]
    pieces: Mapping[str, torch.Tensor]

    @property
    def is_low_rank(self) -> bool:
        """Whether the change is ``up @ down`` alone, which needs no room of its own."""
        return self.pieces.keys() == {"up", "down"}

    def change(self, part: slice, pristine: torch.Tensor) -> torch.Tensor:
        """Δ of the rows ``part`` (indices into ``rows``) of parameters whose pristine values
        are ``pristine``; both [n, out, in]."""
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
            turned = columns * (magnitudes[:, None, :, None] / lengths)
            inner = turned.flatten(2) - pristine
        return inner.to(pristine.dtype)


Layouts = Mapping[Component, SlabLayout]

#: The piece that takes the scale: the last in the product.
_SCALED = ("kron", "up", "full")


@dataclass(frozen=True, slots=True)
class Lora:
    """``groups[component, shape]`` holds the factors for one slab, a group for each form."""

    groups: Mapping[tuple[Component, Shape], tuple[Factors, ...]]
    #: Inversions that came in its file, by trigger word.
    bundled: Mapping[str, Inversion] = field(default_factory=dict)

    @property
    def moves_text(self) -> bool:
        """Whether it changes a text encoder."""
        return any(component != "unet" for component, _ in self.groups)

    @property
    def matched(self) -> int:
        return sum(len(f.rows) for factors in self.groups.values() for f in factors)


@dataclass(frozen=True, slots=True)
class Inversion:
    """Vectors of [n, width] for each text encoder that it moves."""

    vectors: Mapping[Component, torch.Tensor]


DeviceValue = Pristine | Lora | Inversion


def load_lora(
    file: TensorFile,
    schema: ParameterSchema,
    layouts: Layouts,
    device: torch.device,
    dtype: torch.dtype,
) -> Lora:
    """A canonical LoRA on the device, stacked as the slabs are: a read and a copy a stack."""
    shapes = file.header.shapes
    bundled: dict[str, dict[Component, torch.Tensor]] = {}
    for tensor in shapes:
        if tensor.startswith(BUNDLE):
            word, _, encoder = tensor.removeprefix(BUNDLE).rpartition("/")
            vectors = file.read(tensor).to(device, dtype)
            bundled.setdefault(word, {})[cast(Component, encoder)] = vectors
    found = stacks(shapes, schema)
    names = sorted(member for _, _, members in found for member in members)
    scales = dict(zip(names, file.read(SCALES).tolist(), strict=True))
    groups: dict[tuple[Component, Shape], tuple[Factors, ...]] = {}
    with StagingRing(device) as ring:
        for (component, shape), pieces, members in found:
            stacked = {}
            scaled = next(piece for piece in _SCALED if piece in pieces)
            for piece in pieces:
                parts = [f"{member}.{piece}" for member in members]
                infos = [file.header.tensors[part] for part in parts]
                kept = {TORCH_DTYPES[info.dtype] for info in infos}
                kept_dtype = kept.pop() if len(kept) == 1 else torch.float32
                shape_of_stack = (len(parts), *infos[0].shape)
                stack = torch.empty(shape_of_stack, dtype=kept_dtype, device=device)
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
    """Of the encoders that it has vectors for: the second alone, or both."""
    encoders = cast(list[Component], sorted(file.header.tensors))
    return Inversion({encoder: file.read(encoder).to(device, dtype) for encoder in encoders})


def elements(file: TensorFile) -> int:
    """How many numbers the file holds: with the working type, what it takes on the device."""
    total = 0
    for info in file.header.tensors.values():
        count = 1
        for extent in info.shape:
            count *= extent
        total += count
    return total
