"""Planning of weight updates: which slab rows to write to switch to a recipe. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from assets.content import Component
from assets.families.schema import Shape

#: A LoRA's contribution to a row: content key, weight, index of its factors.
Contribution = tuple[str, float, int]
#: All contributions to a row, in the recipe's order.
Contributions = tuple[Contribution, ...]
#: A row of a slab: component, shape, row.
SlabRow = tuple[Component, Shape, int]
#: Rows of one slab with the same contributions.
Group = tuple[Component, Shape, Contributions]


@dataclass(frozen=True, slots=True)
class TargetWeights:
    """The weights of a recipe: the content key of each component's pristine weights, and the
    contributions to each changed row. Equal targets mean equal weights, bit for bit."""

    pristine: Mapping[Component, str]
    moved: Mapping[SlabRow, Contributions] = field(default_factory=dict)
    #: The rows that one product writes, by group.
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

    ``copy``: components copied whole from pristine. ``restore``: rows copied from pristine.
    ``touch``: rows computed from pristine, by group. ``kept``: the number of changed rows that
    need no write.
    """

    copy: frozenset[Component]
    restore: frozenset[SlabRow]
    touch: Mapping[Group, tuple[int, ...]]
    kept: int

    @property
    def touched(self) -> int:
        """The number of rows to compute."""
        return sum(map(len, self.touch.values()))


def plan_update(current: TargetWeights | None, target: TargetWeights) -> WeightUpdate:
    """Return the writes that turn ``current`` into ``target``. Pure.

    Rows of one slab with the same contributions form a group, which one batched product writes. A
    group is kept only if ``current`` has the same group with the same rows; otherwise all of it is
    written. With another number of rows a product may use another kernel and differ in the last
    bits, and the weights of a recipe must not depend on the previous recipe.

    ``current`` is None if the working weights are unknown (at the start, or after a failed swap):
    then everything is written.
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
