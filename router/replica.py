"""A replica, as the router sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: One request is drawn while another's assets are prepared.
SLOTS = 2


@dataclass(frozen=True, slots=True)
class Replica:
    """``resident[tier]`` holds the content keys on that tier; ``host`` and ``disk`` are
    shared by the replicas of a node. ``free_at_s`` is when its drawing ends."""

    id: str
    free_at_s: float
    in_flight: int
    resident: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def has_slot(self) -> bool:
        return self.in_flight < SLOTS

    def tier_of(self, key: str) -> str:
        for tier in ("gpu", "host", "disk"):
            if key in self.resident.get(tier, ()):
                return tier
        return "store"
