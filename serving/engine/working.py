"""The working weights: the tensors that the modules' parameters point at.

``working = pristine + Σ weight · Δ``, always from pristine: errors cannot accumulate.
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
    """The working slabs of an engine. Owned by the generating thread.

    ``_current`` is their content; None after a failed swap, then the next rewrites all.
    """

    def __init__(
        self,
        layouts: Mapping[Component, SlabLayout],
        device: torch.device,
        dtypes: Mapping[Component, torch.dtype],
        staged: bool = False,
    ) -> None:
        """``staged``: pristine weights are on another device."""
        self.layouts = layouts
        self._staged = staged
        self._slabs: dict[Component, Slabs] = {
            component: layout.allocate(device, dtypes[component])
            for component, layout in layouts.items()
        }
        self._current: TargetWeights | None = None

    def parameter(self, component: Component, name: str) -> torch.Tensor:
        """Return a view whose address never changes."""
        place = self.layouts[component].places[name]
        return self._slabs[component][place.shape][place.row]

    @torch.no_grad()
    def switch_to(
        self,
        target: TargetWeights,
        pristine: Mapping[Component, Pristine],
        loras: Mapping[str, Lora],
    ) -> Swap:
        """Write ``target`` in place. Its values must be leased."""
        update = plan_update(self._current, target)
        self._current = None
        copied = self._copy(update.copy, pristine)
        for component, shape, run in _slab_runs(update.restore):
            self._slabs[component][shape][run].copy_(
                pristine[component].slabs[shape][run], non_blocking=True
            )
        self._touch(update, pristine, loras)
        self._current = target
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
        for (component, shape, contributions), rows in update.touch.items():
            source = pristine[component].slabs[shape]
            target = self._slabs[component][shape]
            for run in self._write_runs(component, shape, contributions, rows, loras):
                changes = [
                    _change(component, shape, contribution, loras, run)
                    for contribution in contributions
                ]
                _write(source[run], target[run], changes, self._staged)

    def _write_runs(
        self,
        component: Component,
        shape: Shape,
        contributions: Contributions,
        rows: Sequence[int],
        loras: Mapping[str, Lora],
    ) -> Iterator[slice]:
        """Limits runs whose Δ needs a float32 buffer."""
        factor_groups = (
            loras[key].groups[component, shape][group] for key, _, group in contributions
        )
        run_limit = len(rows)
        if not all(factors.is_low_rank for factors in factor_groups):
            run_limit = max(1, _CHANGED_AT_ONCE // math.prod(shape))
        for run in _runs(rows):
            for first in range(run.start, run.stop, run_limit):
                yield slice(first, min(run.stop, first + run_limit))

    @torch.no_grad()
    def digest(self) -> str:
        """Return the sha256 of two sums over each slab's words, one weighted by position: any
        changed word shows."""
        slabs = [
            self._slabs[component][shape]
            for component in sorted(self._slabs)
            for shape in sorted(self._slabs[component])
        ]
        sums: list[list[int]] = torch.stack([_sums(slab) for slab in slabs]).tolist()  # one sync
        digest = hashlib.sha256()
        for pair in sums:
            digest.update(struct.pack("<qq", *pair))
        return digest.hexdigest()


_WORDS_AT_ONCE = 1 << 22
#: Elements of the buffer for a Δ that is not low-rank: 256 MiB in float32.
_CHANGED_AT_ONCE = 1 << 26


def _sums(slab: torch.Tensor) -> torch.Tensor:
    """Return [2] int64 on the device, modulo 2^64."""
    if not slab.is_contiguous():  # channels-last, summed in memory order
        slab = slab.permute(0, 1, 3, 4, 2)
    words = slab.contiguous().view(-1).view(torch.int16 if slab.itemsize == 2 else torch.int32)
    positions = torch.arange(min(len(words), _WORDS_AT_ONCE), device=slab.device)
    sums = torch.zeros(2, dtype=torch.int64, device=slab.device)
    for first in range(0, len(words), _WORDS_AT_ONCE):
        part = words[first : first + _WORDS_AT_ONCE].to(torch.int64)
        sums[0] += part.sum()
        # Knuth's multiplicative hash of the position; odd: no word has weight zero.
        weights = (positions[: len(part)] + first).mul_(2654435761).bitwise_or_(1)
        sums[1] += (part * weights).sum()
    return sums


#: Factors, the slice of their rows, weight.
Change = tuple[Factors, slice, float]


def _change(
    component: Component,
    shape: Shape,
    contribution: Contribution,
    loras: Mapping[str, Lora],
    run: slice,
) -> Change:
    key, weight, group = contribution
    factors = loras[key].groups[component, shape][group]
    first = factors.rows.index(run.start)
    return factors, slice(first, first + run.stop - run.start), weight


def _write(
    source: torch.Tensor, target: torch.Tensor, changes: Sequence[Change], staged: bool
) -> None:
    """Write ``target`` = ``source`` + Σ weight · Δ, for rows [n, *shape].

    Low-rank changes are one product, concatenated along the rank. ``staged``: ``source`` is on
    another device.
    """
    if staged:
        target.copy_(source, non_blocking=True)
        source = target
    flat = (len(source), source.shape[1], -1)
    ups, downs, deltas = [], [], []
    for factors, part, weight in changes:
        if factors.is_low_rank:
            ups.append(factors.pieces["up"][part] * weight)
            downs.append(factors.pieces["down"][part])
        else:
            deltas.append((factors.change(part, source.reshape(flat)), weight))
    is_contiguous = target.is_contiguous()
    if ups:
        up = ups[0] if len(ups) == 1 else torch.cat(ups, dim=2)
        down = downs[0] if len(downs) == 1 else torch.cat(downs, dim=1)
        if is_contiguous:
            torch.baddbmm(source.view(flat), up, down, out=target.view(flat))
        else:  # channels-last kernels
            torch.add(source, torch.bmm(up, down).view(source.shape), out=target)
    elif not staged:
        target.copy_(source)
    for change, weight in deltas:
        target.add_(change.view(target.shape), alpha=weight)


def _runs(rows: Sequence[int]) -> Iterator[slice]:
    start = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index] != rows[index - 1] + 1:
            yield slice(rows[start], rows[index - 1] + 1)
            start = index


def _slab_runs(rows: frozenset[SlabRow]) -> Iterator[tuple[Component, Shape, slice]]:
    slabs: dict[tuple[Component, Shape], list[int]] = {}
    for component, shape, row in rows:
        slabs.setdefault((component, shape), []).append(row)
    for (component, shape), slab_rows in slabs.items():
        for run in _runs(sorted(slab_rows)):
            yield component, shape, run


def target_weights(
    pristine: Mapping[Component, str], uses: Sequence[tuple[LoraUse, Lora]]
) -> TargetWeights:
    """Return a recipe's target weights; LoRAs of weight zero contribute nothing."""
    moved: dict[SlabRow, list[Contribution]] = {}
    for use, lora in uses:
        for (component, shape), groups in lora.groups.items():
            weight = use.weight_on(component)
            if weight == 0.0:
                continue
            for index, factors in enumerate(groups):
                contribution = (use.blob.key, weight, index)
                for row in factors.rows:
                    moved.setdefault((component, shape, row), []).append(contribution)
    return TargetWeights(
        pristine, {row: tuple(contributions) for row, contributions in moved.items()}
    )
