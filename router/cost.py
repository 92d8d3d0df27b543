"""What a request costs on a replica, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.replica import Replica
from router.request import Waiting


@dataclass(frozen=True, slots=True)
class Speeds:
    """``bytes_per_s[tier]``: how fast a blob climbs to the GPU from where it lies.
    ``work_per_s``: steps × pixels × images a second. ``swap_s``: becoming a recipe."""

    bytes_per_s: Mapping[str, float] = field(
        default_factory=lambda: {"host": 10e9, "disk": 2e9, "store": 0.2e9}
    )
    work_per_s: float = 10e6
    swap_s: float = 0.02


def fetch_s(request: Waiting, replica: Replica, speeds: Speeds) -> float:
    """Seconds to bring up what the replica lacks."""
    total = 0.0
    for blob in request.blobs:
        tier = replica.tier_of(blob.key)
        if tier != "gpu":
            total += blob.size_bytes / speeds.bytes_per_s[tier]
    return total


def busy_s(replica: Replica, now_s: float) -> float:
    """Seconds until the replica has drawn what it has. One that should have ended by now is
    taken to need as long again as it is overdue: so a stuck one soon attracts nothing."""
    left = replica.free_at_s - now_s
    return abs(left) if replica.in_flight else max(left, 0.0)


def cost_s(request: Waiting, replica: Replica, speeds: Speeds, now_s: float) -> float:
    """Seconds from now until the picture would be done there.

    Assets are prepared while the replica still draws, so the wait for a free drawing
    and the fetch overlap.
    """
    ready = max(busy_s(replica, now_s), fetch_s(request, replica, speeds))
    return ready + speeds.swap_s + request.work / speeds.work_per_s
