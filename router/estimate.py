"""What a request would cost now: figures to show, which decide nothing."""

from __future__ import annotations

from typing import NamedTuple

from router.admission import expected_wait_s
from router.cost import Speeds, cost_s
from router.fleet import Fleet
from router.queue import Queue
from router.replica import Replica
from router.request import QueuedRequest


class FetchEstimate(NamedTuple):
    """A blob that the replica would fetch, and from which tier."""

    key: str
    tier: str
    size_bytes: int
    seconds: float


class Estimate(NamedTuple):
    """``replica``: where the request would be done first."""

    replica: str
    wait_s: float
    fetches: tuple[FetchEstimate, ...]


def estimate(
    request: QueuedRequest,
    queue: Queue,
    fleet: Fleet,
    speeds: Speeds,
    now_s: float,
) -> Estimate | None:
    """Estimate a request that would arrive now; None without a replica."""
    if not len(fleet):
        return None

    def seconds(replica: Replica) -> tuple[float, str]:
        return cost_s(request, replica, speeds, now_s), replica.id

    best = min(fleet.replicas.values(), key=seconds)
    fetches = tuple(
        FetchEstimate(blob.key, tier, blob.size_bytes, blob.size_bytes / speeds.bytes_per_s[tier])
        for blob in request.blobs
        for tier in (best.tier_of(blob.key),)
        if tier != "gpu"
    )
    queued_s = expected_wait_s(request, queue, fleet, speeds, now_s) if len(queue) else 0.0
    wait_s = max(queued_s, best.busy_s(now_s))
    return Estimate(best.id, wait_s, fetches)
