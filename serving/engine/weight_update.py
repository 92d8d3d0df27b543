"""Planning of weight updates: which slab rows to write to switch to a recipe. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from assets.content import Component
from assets.families.schema import Shape

#: LoRA's content key, weight, index of its factors.
Contribution = tuple[str, float, int]
#: To one row, in the recipe's order.
Contributions = tuple[Contribution, ...]
SlabRow = tuple[Component, Shape, int]
#: Rows of one slab with the same contributions; one product writes them.
Group = tuple[Component, Shape, Contributions]


@dataclass(frozen=True, slots=True)
class TargetWeights:
    """Pristine content keys by component, contributions by changed row. Equal targets mean equal
    weights, bit for bit."""

    pristine: Mapping[Component, str]
    moved: Mapping[SlabRow, Contributions] = field(default_factory=dict)
    groups: Mapping[Group, tuple[int, ...]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        groups: dict[Group, list[int]] = {}
        for (component, shape, row), contributions in self.moved.items():
            groups.setdefault((component, shape, contributions), []).append(row)
        ordered = {group: tuple(sorted(rows)) for group, rows in groups.items()}
        object.__setattr__(self, "groups", ordered)


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """The writes of one swap.

    ``copy``: whole components; ``restore``: pristine rows; ``touch``: rows to compute, by group;
    ``kept``: number of changed rows without a write.
    """

    copy: frozenset[Component]
    restore: frozenset[SlabRow]
    touch: Mapping[Group, tuple[int, ...]]
    kept: int

    @property
    def touched(self) -> int:
        return sum(map(len, self.touch.values()))


def plan_update(current: TargetWeights | None, target: TargetWeights) -> WeightUpdate:
    """Return the writes that turn ``current`` (None: unknown) into ``target``. Pure.

    A group is kept only whole: a product of other rows may use another kernel and differ in the
    last bits, and weights must not depend on the previous recipe.
    """
    if current is None:
        return WeightUpdate(frozenset(target.pristine), frozenset(), target.groups, 0)
    copy = frozenset(
        component
        for component, key in target.pristine.items()
        if current.pristine.get(component) != key
    )
    restore = frozenset(
        row for row in current.moved if row not in target.moved and row[0] not in copy
    )
    touch = {
        group: rows
        for group, rows in target.groups.items()
        if group[0] in copy or current.groups.get(group) != rows
    }
    kept = len(target.moved) - sum(map(len, touch.values()))
    return WeightUpdate(copy, restore, touch, kept)
