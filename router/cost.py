"""The cost of a request on a replica, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from assets.content import Blob
from router.replica import Replica
from router.request import QueuedRequest


@dataclass(frozen=True, slots=True)
class Speeds:
    """The speeds of a pool.

    ``bytes_per_s[tier]``: from that tier to the GPU. ``work_per_s``: evaluations × pixels × images.
    ``swap_s``: seconds per recipe switch.
    """

    bytes_per_s: Mapping[str, float] = field(
        default_factory=lambda: {"host": 10e9, "disk": 2e9, "store": 0.2e9}
    )
    work_per_s: float = 10e6
    swap_s: float = 0.02
    #: Otherwise, ``work_per_s`` is assumed.
    is_measured: bool = False

    def fetch_s(self, blobs: tuple[Blob, ...], replica: Replica) -> float:
        """Return the seconds to load those of ``blobs`` not on its GPU."""
        total = 0.0
        for blob in blobs:
            if blob.key not in replica.gpu:
                total += blob.size_bytes / self.bytes_per_s[replica.node.tier_of(blob.key)]
        return total

    def at_most_s(self, blobs: tuple[Blob, ...]) -> float:
        """Return the seconds to load ``blobs`` from the store."""
        return sum(blob.size_bytes for blob in blobs) / self.bytes_per_s["store"]


def cost_s(request: QueuedRequest, replica: Replica, speeds: Speeds, now_s: float) -> float:
    """Return the seconds from now until the replica finishes the request.

    LoRAs and inversions load during a generation; so does a checkpoint if two fit.
    """
    extras_s = speeds.fetch_s(request.extras, replica)
    model_s = speeds.fetch_s(request.model, replica)
    if model_s and replica.checkpoint_capacity < 2:
        ready_s = max(replica.busy_s(now_s), extras_s) + model_s
    else:
        ready_s = max(replica.busy_s(now_s), extras_s + model_s)
    return ready_s + speeds.swap_s + request.work / speeds.work_per_s
