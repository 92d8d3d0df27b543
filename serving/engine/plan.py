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
    """``copy``: components copied whole from pristine. ``restore``: rows copied from pristine.
    ``touch``: rows computed from pristine. ``kept``: the number of moved rows left as they are."""

    copy: frozenset[Component]
    restore: frozenset[Row]
    touch: Mapping[Row, Movers]
    kept: int


def plan(current: Target | None, wanted: Target) -> Plan:
    """What to write to turn ``current`` into ``wanted``. Pure.

    Rows of one slab with the same movers form a group, which one batched product writes. A
    group is kept only if ``current`` has the same group with the same rows, else it is written
    whole: for another number of rows a product may use another kernel, with other last bits,
    and the weights of a recipe must not depend on the recipe before it.

    ``current`` is None when the working weights are unknown (at the start, or after a failed
    swap): then everything is written.
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
    held = _groups(current)
    touch = {
        row: movers
        for (component, shape, movers), rows in _groups(wanted).items()
        if component in copy or held.get((component, shape, movers)) != rows
        for row in rows
    }
    return Plan(copy, restore, touch, len(wanted.moved) - len(touch))


def _groups(target: Target) -> dict[tuple[Component, Shape, Movers], set[Row]]:
    """The rows that are written together."""
    groups: dict[tuple[Component, Shape, Movers], set[Row]] = {}
    for row, movers in target.moved.items():
        groups.setdefault((row[0], row[1], movers), set()).add(row)
    return groups
