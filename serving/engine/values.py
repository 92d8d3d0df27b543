"""What the GPU tier holds for the engine: pristine components, factors, vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    """Part of a LoRA: its factors for ``rows`` of one slab, all of one rank.

    ``up`` is [rows, out, rank] with alpha / rank multiplied in, ``down`` [rows, rank, in].
    """

    rows: tuple[int, ...]
    up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True)
class Lora:
    """``groups[component, shape]`` holds the factors for one slab, a group a rank."""

    groups: Mapping[tuple[Component, Shape], tuple[Factors, ...]]

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
    names = sorted(n.removesuffix(".down") for n in file.header.tensors if n.endswith(".down"))
    scales = dict(zip(names, file.read("scales").tolist(), strict=True))
    by_slab: dict[tuple[Component, Shape, int], list[tuple[int, str]]] = {}
    for name in names:
        component, parameter = _split(name)
        place = layouts[component].places[parameter]
        rank = file.header.tensors[f"{name}.down"].shape[0]
        by_slab.setdefault((component, place.shape, rank), []).append((place.row, name))
    groups: dict[tuple[Component, Shape], tuple[Factors, ...]] = {}
    for (component, shape, _rank), members in sorted(by_slab.items()):
        members.sort()
        ups = [file.read(f"{n}.up").float() * scales[n] for _, n in members]
        downs = [file.read(f"{n}.down").float() for _, n in members]
        factors = Factors(
            rows=tuple(row for row, _ in members),
            up=torch.stack(ups).to(device, dtype),
            down=torch.stack(downs).to(device, dtype),
        )
        groups[component, shape] = (*groups.get((component, shape), ()), factors)
    return Lora(groups)


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
