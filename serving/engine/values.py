"""What the GPU tier holds for the engine: pristine components, factors, vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from assets.content import Component
from assets.formats.tensors import TensorFile
from assets.skeleton import Shape
from serving.engine.slabs import SlabLayout, Slabs


@dataclass(frozen=True, slots=True)
class Pristine:
    """A component's weights as they were published. Never written to."""

    slabs: Slabs


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


#: The piece that takes the scale: the last in the product.
_SCALED = ("kron", "up", "full")


@dataclass(frozen=True, slots=True)
class Lora:
    """``groups[component, shape]`` holds the factors for one slab, a group for each form."""

    groups: Mapping[tuple[Component, Shape], tuple[Factors, ...]]
    #: Inversions that came in its file, by trigger word.
    bundled: Mapping[str, Inversion] = field(default_factory=dict)

    @property
    def matched(self) -> int:
        return sum(len(f.rows) for factors in self.groups.values() for f in factors)


@dataclass(frozen=True, slots=True)
class Inversion:
    """Vectors of [n, width] for each text encoder."""

    vectors: Mapping[Component, torch.Tensor]


DeviceValue = Pristine | Lora | Inversion


def load_lora(
    file: TensorFile,
    layouts: Mapping[Component, SlabLayout],
    device: torch.device,
    dtype: torch.dtype,
) -> Lora:
    """A canonical LoRA on the device, stacked as the slabs are."""
    pieces_of: dict[str, list[str]] = {}
    bundled: dict[str, dict[Component, torch.Tensor]] = {}
    for tensor in sorted(file.header.tensors):
        if tensor.startswith("bundle/"):
            word, _, encoder = tensor.removeprefix("bundle/").rpartition("/")
            vectors = file.read(tensor).to(device, dtype)
            bundled.setdefault(word, {})[cast(Component, encoder)] = vectors
        elif tensor != "scales":
            name, _, piece = tensor.rpartition(".")
            pieces_of.setdefault(name, []).append(piece)
    scales = dict(zip(sorted(pieces_of), file.read("scales").tolist(), strict=True))
    alike: dict[tuple[Any, ...], list[tuple[int, str]]] = {}
    for name, pieces in pieces_of.items():
        component, parameter = _split(name)
        place = layouts[component].places[parameter]
        shapes = tuple((p, file.header.tensors[f"{name}.{p}"].shape) for p in pieces)
        alike.setdefault((component, place.shape, shapes), []).append((place.row, name))
    groups: dict[tuple[Component, Shape], tuple[Factors, ...]] = {}
    for (component, shape, shapes), members in sorted(alike.items()):
        members.sort()
        pieces = [piece for piece, _ in shapes]
        scaled = next(piece for piece in _SCALED if piece in pieces)
        stacked = {}
        for piece in pieces:
            tensors = [file.read(f"{name}.{piece}").float() for _, name in members]
            if piece == scaled:
                tensors = [
                    tensor * scales[name]
                    for tensor, (_, name) in zip(tensors, members, strict=True)
                ]
            stacked[piece] = torch.stack(tensors).to(device, dtype)
        factors = Factors(tuple(row for row, _ in members), stacked)
        groups[component, shape] = (*groups.get((component, shape), ()), factors)
    return Lora(groups, {word: Inversion(vectors) for word, vectors in bundled.items()})


def _split(name: str) -> tuple[Component, str]:
    for component in ("unet", "text_encoder", "text_encoder_2"):
        prefix = f"{component}/"
        if name.startswith(prefix):
            return component, name.removeprefix(prefix)
    raise KeyError(name)


def load_inversion(file: TensorFile, device: torch.device, dtype: torch.dtype) -> Inversion:
    return Inversion(
        {
            "text_encoder": file.read("text_encoder").to(device, dtype),
            "text_encoder_2": file.read("text_encoder_2").to(device, dtype),
        }
    )


def elements(file: TensorFile) -> int:
    """How many numbers the file holds: with the working type, what it takes on the device."""
    total = 0
    for info in file.header.tensors.values():
        count = 1
        for extent in info.shape:
            count *= extent
        total += count
    return total
