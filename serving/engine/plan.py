"""What it takes to become a recipe: a pure value that tests can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from assets.content import Component
from assets.skeleton import Shape

#: A LoRA that moves a row: content key, weight, factor group.
Mover = tuple[str, float, int]
#: All of a row's, in canonical order.
Movers = tuple[Mover, ...]
#: A row of a slab: component, shape, row.
Row = tuple[Component, Shape, int]


@dataclass(frozen=True, slots=True)
class Target:
    """A recipe as the weights see it: the key of each component's pristine weights, and
    who moves which row. Two equal targets are the same weights, bit for bit."""

    pristine: Mapping[Component, str]
    moved: Mapping[Row, Movers] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """``copy``: components taken over whole from pristine. ``restore``: rows copied from
    pristine. ``touch``: rows computed from pristine. ``kept``: moved rows that are right."""

    copy: frozenset[Component]
    restore: frozenset[Row]
    touch: Mapping[Row, Movers]
    kept: int


def plan(current: Target | None, wanted: Target) -> Plan:
    """The least writing that turns ``current`` into ``wanted``. Pure.

    ``None`` means that nothing is known of the working weights (at the start, or after
    a swap that failed): everything is written.
    """
    if current is None:
        return Plan(frozenset(wanted.pristine), frozenset(), dict(wanted.moved), 0)
    copy = frozenset(
        component
        for component, key in wanted.pristine.items()
        if current.pristine.get(component) != key
    )
    restore = frozenset(
        row for row in current.moved if row not in wanted.moved and row[0] not in copy
    )
    touch = {
        row: movers
        for row, movers in wanted.moved.items()
        if row[0] in copy or current.moved.get(row) != movers
    }
    return Plan(copy, restore, touch, len(wanted.moved) - len(touch))
