"""The router's view of a replica and its node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.request import QueuedRequest

#: One request generates while the next one's assets are prepared.
MAX_IN_FLIGHT = 2


@dataclass(slots=True)
class Node:
    """A node. ``resident[tier]`` holds the content keys in its ``host`` and ``disk`` tiers, which
    its replicas share."""

    id: str
    resident: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def tier_of(self, key: str) -> str:
        """Return the fastest tier that holds the key: "host", "disk" or "store"."""
        for tier in ("host", "disk"):
            if key in self.resident.get(tier, ()):
                return tier
        return "store"


@dataclass(slots=True)
class Replica:
    """A replica. Mutable, but only by its fleet.

    ``gpu`` holds the content keys on its device once all requests sent to it are done; ``models``
    holds those that are checkpoints (request groups), the most recently used last. At most
    ``checkpoint_capacity`` checkpoints fit at a time. ``running`` maps the IDs of the requests
    sent to it; it finishes them all at ``free_at_s``.
    """

    id: str
    node: Node
    gpu: set[str] = field(default_factory=set)
    models: dict[str, None] = field(default_factory=dict)
    checkpoint_capacity: int = 1
    running: dict[str, QueuedRequest] = field(default_factory=dict)
    free_at_s: float = 0.0
    max_in_flight: int = MAX_IN_FLIGHT
    #: Generation seconds sent to it since it last loaded a checkpoint.
    batch_s: float = 0.0
    #: Incremented at every change.
    version: int = 0
    #: The sorted keys of ``models``.
    kind: tuple[str, ...] = ()

    @property
    def has_capacity(self) -> bool:
        return len(self.running) < self.max_in_flight

    def busy_s(self, now_s: float) -> float:
        """Return the seconds until the replica is idle. An overdue replica is assumed to need as
        long again as it is overdue, so that a stuck one stops attracting requests."""
        return abs(self.free_at_s - now_s) if self.running else 0.0

    def tier_of(self, key: str) -> str:
        return "gpu" if key in self.gpu else self.node.tier_of(key)
