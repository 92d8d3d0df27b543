"""The working weights: the tensors that the modules point at.

``working = pristine + Σ weight · Δ``, written in place and always from
pristine; nothing is ever subtracted, so nothing drifts and nothing sticks.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence

import torch

from assets.content import Component
from assets.families.schema import Shape
from assets.recipe import LoraUse
from serving.engine.slabs import SlabLayout, Slabs
from serving.engine.values import Factors, Lora, Pristine
from serving.engine.weight_update import (
    Contribution,
    Contributions,
    SlabRow,
    TargetWeights,
    WeightUpdate,
    plan_update,
)
from serving.generation.contract import Swap


class WorkingSet:
    """One set of working slabs. Owned by the engine's one thread.

    Mutable state: the slabs, and ``_current`` (what they hold, or None when a swap
    failed half way; the next one then rewrites everything).
    """

    def __init__(
        self,
        layouts: Mapping[Component, SlabLayout],
        device: torch.device,
        dtypes: Mapping[Component, torch.dtype],
        staged: bool = False,
    ) -> None:
        """``staged``: pristine weights lie on another device than the working ones."""
        self.layouts = layouts
        self._staged = staged
        self._slabs: dict[Component, Slabs] = {
            component: layout.allocate(device, dtypes[component])
            for component, layout in layouts.items()
        }
        self._current: TargetWeights | None = None

    def parameter(self, component: Component, name: str) -> torch.Tensor:
        """The view that a module's parameter is bound to, for good."""
        place = self.layouts[component].places[name]
        return self._slabs[component][place.shape][place.row]

    @torch.no_grad()
    def switch_to(
        self,
        wanted: TargetWeights,
        pristine: Mapping[Component, Pristine],
        loras: Mapping[str, Lora],
    ) -> Swap:
        """Write the weights of ``wanted``; every value named in it must be leased."""
        update = plan_update(self._current, wanted)
        self._current = None
        copied = self._copy(update.copy, pristine)
        for component, shape, run in _slab_runs(update.restore):
            self._slabs[component][shape][run].copy_(
                pristine[component].slabs[shape][run], non_blocking=True
            )
        self._touch(update, pristine, loras)
        self._current = wanted
        return Swap(copied, update.touched, len(update.restore), update.kept)

    def _copy(
        self, components: frozenset[Component], pristine: Mapping[Component, Pristine]
    ) -> int:
        count = 0
        for component in sorted(components):
            for shape, slab in self._slabs[component].items():
                slab.copy_(pristine[component].slabs[shape], non_blocking=True)
                count += slab.shape[0]
        return count

    def _touch(
        self,
        update: WeightUpdate,
        pristine: Mapping[Component, Pristine],
        loras: Mapping[str, Lora],
    ) -> None:
        for (component, shape, movers), rows in update.touch.items():
            source = pristine[component].slabs[shape]
            target = self._slabs[component][shape]
            for run in self._pieces(component, shape, movers, rows, loras):
                changes = [_change(component, shape, mover, loras, run) for mover in movers]
                _write(source[run], target[run], changes, self._staged)

    def _pieces(
        self,
        component: Component,
        shape: Shape,
        movers: Contributions,
        rows: Sequence[int],
        loras: Mapping[str, Lora],
    ) -> Iterator[slice]:
        """Runs of rows that are written in one go: whole for low-rank changes, which need no
        room of their own, and cut for the others, whose change is computed in float32."""
        moving = (loras[key].groups[component, shape][group] for key, _, group in movers)
        most = len(rows)
        if not all(factors.is_low_rank for factors in moving):
            most = max(1, _CHANGED_AT_ONCE // math.prod(shape))
        for run in _runs(rows):
            for first in range(run.start, run.stop, most):
                yield slice(first, min(run.stop, first + most))

    @torch.no_grad()
    def digest(self) -> str:
        """sha256 of two sums of each slab's words, one weighed by their places: computed on
        the device, and different for any one changed word."""
        slabs = [
            self._slabs[component][shape]
            for component in sorted(self._slabs)
            for shape in sorted(self._slabs[component])
        ]
        sums: list[list[int]] = torch.stack([_sums(slab) for slab in slabs]).tolist()  # one wait
        digest = hashlib.sha256()
        for pair in sums:
            digest.update(struct.pack("<qq", *pair))
        return digest.hexdigest()


_WORDS_AT_ONCE = 1 << 22
#: Numbers of a change that needs room of its own: 256 MB in float32.
_CHANGED_AT_ONCE = 1 << 26


def _sums(slab: torch.Tensor) -> torch.Tensor:
    """[2] int64 on the slab's device, both modulo 2^64."""
    if not slab.is_contiguous():  # kernels in channels-last order: as they lie in memory
        slab = slab.permute(0, 1, 3, 4, 2)
    words = slab.contiguous().view(-1).view(torch.int16 if slab.itemsize == 2 else torch.int32)
    place = torch.arange(min(len(words), _WORDS_AT_ONCE), device=slab.device)
    sums = torch.zeros(2, dtype=torch.int64, device=slab.device)
    for first in range(0, len(words), _WORDS_AT_ONCE):
        part = words[first : first + _WORDS_AT_ONCE].to(torch.int64)
        sums[0] += part.sum()
        # Knuth's multiplier spreads the places; odd, so that no word's weight is zero.
        weights = (place[: len(part)] + first).mul_(2654435761).bitwise_or_(1)
        sums[1] += (part * weights).sum()
    return sums


#: A mover of a run of rows: its factors, which of their rows, its weight.
Change = tuple[Factors, slice, float]


def _change(
    component: Component, shape: Shape, mover: Contribution, loras: Mapping[str, Lora], run: slice
) -> Change:
    key, weight, group = mover
    factors = loras[key].groups[component, shape][group]
    first = factors.rows.index(run.start)
    return factors, slice(first, first + run.stop - run.start), weight


def _write(
    source: torch.Tensor, target: torch.Tensor, changes: Sequence[Change], staged: bool
) -> None:
    """``target`` = ``source`` + Σ weight · Δ, for rows [n, *shape].

    All low-rank changes are one product, their factors side by side along the rank.
    ``staged``: the source lies elsewhere; it is copied over first.
    """
    if staged:
        target.copy_(source, non_blocking=True)
        source = target
    flat = (len(source), source.shape[1], -1)
    ups, downs, others = [], [], []
    for factors, part, weight in changes:
        if factors.is_low_rank:
            ups.append(factors.pieces["up"][part] * weight)
            downs.append(factors.pieces["down"][part])
        else:
            others.append((factors.change(part, source.reshape(flat)), weight))
    in_order = target.is_contiguous()
    if ups:
        up = ups[0] if len(ups) == 1 else torch.cat(ups, dim=2)
        down = downs[0] if len(downs) == 1 else torch.cat(downs, dim=1)
        if in_order:
            torch.baddbmm(source.view(flat), up, down, out=target.view(flat))
        else:  # a kernel in channels-last order
            torch.add(source, torch.bmm(up, down).view(source.shape), out=target)
    elif not staged:
        target.copy_(source)
    for change, weight in others:
        target.add_(change.view(target.shape), alpha=weight)


def _runs(rows: Sequence[int]) -> Iterator[slice]:
    """The contiguous runs of ``rows``, which ascend."""
    start = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index] != rows[index - 1] + 1:
            yield slice(rows[start], rows[index - 1] + 1)
            start = index


def _slab_runs(rows: frozenset[SlabRow]) -> Iterator[tuple[Component, Shape, slice]]:
    """The contiguous runs of rows of each slab."""
    slabs: dict[tuple[Component, Shape], list[int]] = {}
    for component, shape, row in rows:
        slabs.setdefault((component, shape), []).append(row)
    for (component, shape), found in slabs.items():
        for run in _runs(sorted(found)):
            yield component, shape, run


def target_weights(
    pristine: Mapping[Component, str], uses: Sequence[tuple[LoraUse, Lora]]
) -> TargetWeights:
    """The target of a recipe; a LoRA at weight zero moves nothing."""
    moved: dict[SlabRow, list[Contribution]] = {}
    for use, lora in uses:
        for (component, shape), groups in lora.groups.items():
            weight = use.weight_on(component)
            if weight == 0.0:
                continue
            for index, factors in enumerate(groups):
                mover = (use.blob.key, weight, index)
                for row in factors.rows:
                    moved.setdefault((component, shape, row), []).append(mover)
    return TargetWeights(pristine, {row: tuple(movers) for row, movers in moved.items()})
