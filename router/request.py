"""A request that waits, as the router sees it."""

from __future__ import annotations

from dataclasses import dataclass

from assets.content import Blob

QueuePosition = tuple[bool, float]


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """``work`` is steps × pixels × images. ``model`` holds what is swapped as a whole (the
    checkpoint's components, the VAE), ``extras`` what comes on top (LoRAs, inversions).
    ``group`` is the key by which requests are routed first: that of the checkpoint's UNet.

    ``position`` orders tenants fairly: whether this one steps back, and the virtual finish (see
    fairness.py). ``avoid`` holds the replicas on which this request has failed already.
    """

    id: str
    tenant_id: str
    work: float
    group: str
    model: tuple[Blob, ...]
    extras: tuple[Blob, ...]
    arrived_s: float
    deadline_s: float
    position: QueuePosition = (False, 0.0)
    weight: float = 1.0
    #: Among the requests of one tenant, the higher goes first.
    priority: int = 0
    avoid: frozenset[str] = frozenset()
    images: int = 1
    #: How many pictures of its tenant may be drawn at a time; None is as many as there are slots.
    max_concurrent_images: int | None = None

    @property
    def time_s(self) -> float:
        """How long it may take in all."""
        return self.deadline_s - self.arrived_s

    @property
    def is_deprioritized(self) -> bool:
        """Whether its tenant has had so much lately that others go first."""
        return self.position[0]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return self.model + self.extras
