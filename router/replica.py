"""A replica and its node, as the router sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.request import QueuedRequest

#: One request is drawn while another's assets are prepared.
MAX_IN_FLIGHT = 2


@dataclass(slots=True)
class Node:
    """``resident[tier]`` holds the content keys on ``host`` and ``disk``, which the replicas
    of a node share."""

    id: str
    resident: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def tier_of(self, key: str) -> str:
        for tier in ("host", "disk"):
            if key in self.resident.get(tier, ()):
                return tier
        return "store"


@dataclass(slots=True)
class Replica:
    """Mutable; only the fleet that holds it changes it.

    ``gpu`` are the content keys on its device, as they will be when it has drawn all that it
    was sent; ``models`` those of them by which requests are grouped, the one it was sent last
    at the end, and ``checkpoint_capacity`` how many such fit at a time.
    ``running`` is what it was sent, by id; ``free_at_s`` when it will have drawn all of that.
    """

    id: str
    node: Node
    gpu: set[str] = field(default_factory=set)
    models: dict[str, None] = field(default_factory=dict)
    checkpoint_capacity: int = 1
    running: dict[str, QueuedRequest] = field(default_factory=dict)
    free_at_s: float = 0.0
    max_in_flight: int = MAX_IN_FLIGHT
    #: Seconds of drawing that it was sent since it last had to load a checkpoint.
    batch_s: float = 0.0
    #: Raised at every change.
    version: int = 0
    #: Its checkpoints, sorted.
    kind: tuple[str, ...] = ()

    @property
    def has_capacity(self) -> bool:
        return len(self.running) < self.max_in_flight

    def busy_s(self, now_s: float) -> float:
        """Seconds until it has drawn what it has. One that should have ended by now is taken
        to need as long again as it is overdue: so a stuck one soon attracts nothing."""
        return abs(self.free_at_s - now_s) if self.running else 0.0

    def tier_of(self, key: str) -> str:
        return "gpu" if key in self.gpu else self.node.tier_of(key)
