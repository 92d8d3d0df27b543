"""The router's view of a replica and its node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.request import QueuedRequest

#: One generates while the next is prepared.
MAX_IN_FLIGHT = 2


@dataclass(slots=True)
class Node:
    """``resident``: keys in its ``host`` and ``disk`` tiers, shared by its replicas."""

    id: str
    resident: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def tier_of(self, key: str) -> str:
        for tier in ("host", "disk"):
            if key in self.resident.get(tier, ()):
                return tier
        return "store"


@dataclass(slots=True)
class Replica:
    """A replica; only its fleet changes it.

    ``gpu``: keys on its device once all its requests are done (at ``free_at_s``); ``models``: the
    checkpoints (request groups) among them, most recently used last. ``running``: sent requests by
    ID.
    """

    id: str
    node: Node
    gpu: set[str] = field(default_factory=set)
    models: dict[str, None] = field(default_factory=dict)
    checkpoint_capacity: int = 1
    running: dict[str, QueuedRequest] = field(default_factory=dict)
    free_at_s: float = 0.0
    max_in_flight: int = MAX_IN_FLIGHT
    #: Generation seconds sent since its last checkpoint load.
    batch_s: float = 0.0
    version: int = 0
    #: Sorted ``models``.
    kind: tuple[str, ...] = ()

    @property
    def has_capacity(self) -> bool:
        return len(self.running) < self.max_in_flight

    def busy_s(self, now_s: float) -> float:
        """Return the seconds until idle. An overdue replica counts as busy for as long again: a
        stuck one must not attract requests."""
        return abs(self.free_at_s - now_s) if self.running else 0.0

    def tier_of(self, key: str) -> str:
        return "gpu" if key in self.gpu else self.node.tier_of(key)
