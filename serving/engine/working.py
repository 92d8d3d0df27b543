"""The working weights: the tensors that the modules point at.

``working = pristine + Σ weight · Δ``, written in place and always from
pristine; nothing is ever subtracted, so nothing drifts and nothing sticks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch

from assets.content import Component
from assets.recipe import LoraUse
from assets.skeleton import Shape
from serving.drawing import Swap
from serving.engine.plan import Mover, Movers, Plan, Row, Target, plan
from serving.engine.slabs import SlabLayout, Slabs
from serving.engine.values import Factors, Lora, Pristine


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
    ) -> None:
        self.layouts = layouts
        self._slabs: dict[Component, Slabs] = {
            component: layout.allocate(device, dtypes[component])
            for component, layout in layouts.items()
        }
        self._current: Target | None = None

    def parameter(self, component: Component, name: str) -> torch.Tensor:
        """The view that a module's parameter is bound to, for good."""
        place = self.layouts[component].places[name]
        return self._slabs[component][place.shape][place.row]

    @torch.no_grad()
    def become(
        self, wanted: Target, pristine: Mapping[Component, Pristine], loras: Mapping[str, Lora]
    ) -> Swap:
        """Write the weights of ``wanted``; every value named in it must be leased."""
        steps = plan(self._current, wanted)
        self._current = None
        copied = self._copy(steps.copy, pristine)
        for component, shape, run in _runs(steps.restore):
            self._slabs[component][shape][run].copy_(pristine[component].slabs[shape][run])
        self._touch(steps, pristine, loras)
        self._current = wanted
        return Swap(copied, len(steps.touch), len(steps.restore), steps.kept)

    def _copy(
        self, components: frozenset[Component], pristine: Mapping[Component, Pristine]
    ) -> int:
        count = 0
        for component in sorted(components):
            for shape, slab in self._slabs[component].items():
                slab.copy_(pristine[component].slabs[shape])
                count += slab.shape[0]
        return count

    def _touch(
        self, steps: Plan, pristine: Mapping[Component, Pristine], loras: Mapping[str, Lora]
    ) -> None:
        by_movers: dict[tuple[Component, Shape, Movers], list[Row]] = {}
        for row, movers in steps.touch.items():
            by_movers.setdefault((row[0], row[1], movers), []).append(row)
        for (component, shape, movers), rows in by_movers.items():
            source = pristine[component].slabs[shape]
            target = self._slabs[component][shape]
            for _, _, run in _runs(rows):
                changes = [_change(component, shape, mover, loras, run) for mover in movers]
                _write(source[run], target[run], changes)

    def digest(self) -> str:
        """sha256 of every working byte, in a fixed order."""
        digest = hashlib.sha256()
        for component in sorted(self._slabs):
            for shape in sorted(self._slabs[component]):
                slab = self._slabs[component][shape]
                digest.update(slab.contiguous().view(torch.uint8).cpu().numpy().data)
        return digest.hexdigest()


#: A mover of a run of rows: its factors, which of their rows, its weight.
Change = tuple[Factors, slice, float]


def _change(
    component: Component, shape: Shape, mover: Mover, loras: Mapping[str, Lora], run: slice
) -> Change:
    key, weight, group = mover
    factors = loras[key].groups[component, shape][group]
    first = factors.rows.index(run.start)
    return factors, slice(first, first + run.stop - run.start), weight


def _write(source: torch.Tensor, target: torch.Tensor, changes: Sequence[Change]) -> None:
    """``target`` = ``source`` + Σ weight · Δ, for rows [n, *shape].

    All low-rank changes are one product, their factors side by side along the rank.
    """
    flat = (len(source), source.shape[1], -1)
    ups, downs, others = [], [], []
    for factors, part, weight in changes:
        if factors.is_low_rank:
            ups.append(factors.pieces["up"][part] * weight)
            downs.append(factors.pieces["down"][part])
        else:
            others.append((factors.change(part, source.view(flat)), weight))
    if ups:
        up = ups[0] if len(ups) == 1 else torch.cat(ups, dim=2)
        down = downs[0] if len(downs) == 1 else torch.cat(downs, dim=1)
        torch.baddbmm(source.view(flat), up, down, out=target.view(flat))
    else:
        target.copy_(source)
    for change, weight in others:
        target.view(flat).add_(change, alpha=weight)


def _runs(rows: Sequence[Row] | frozenset[Row]) -> Iterator[tuple[Component, Shape, slice]]:
    """Contiguous runs of rows of one slab."""
    ordered = sorted(rows)
    start = 0
    for index in range(1, len(ordered) + 1):
        if index < len(ordered):
            component, shape, row = ordered[index]
            if (component, shape, row - 1) == ordered[index - 1]:
                continue
        component, shape, first = ordered[start]
        yield component, shape, slice(first, ordered[index - 1][2] + 1)
        start = index


def target_of(pristine: Mapping[Component, str], uses: Sequence[tuple[LoraUse, Lora]]) -> Target:
    """The target of a recipe; a LoRA at weight zero moves nothing."""
    moved: dict[Row, list[Mover]] = {}
    for use, lora in uses:
        for (component, shape), groups in lora.groups.items():
            weight = use.weight_on(component)
            if weight == 0.0:
                continue
            for index, factors in enumerate(groups):
                mover = (use.blob.key, weight, index)
                for row in factors.rows:
                    moved.setdefault((component, shape, row), []).append(mover)
    return Target(pristine, {row: tuple(movers) for row, movers in moved.items()})
