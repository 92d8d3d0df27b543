"""The router's view of a queued request."""

from __future__ import annotations

from dataclasses import dataclass

from assets.content import Blob

#: Whether deprioritized; virtual finish time.
QueuePosition = tuple[bool, float]


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """``work`` is evaluations × pixels × images. ``model``: blobs swapped as a whole (checkpoint,
    VAE); ``extras``: applied on top (LoRAs, inversions). ``group``: the key of the checkpoint's
    UNet. ``position``: see fairness.py. ``avoid``: replicas on which it failed."""

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
    #: Within its tenant; the highest runs first.
    priority: int = 0
    avoid: frozenset[str] = frozenset()
    images: int = 1
    #: Its tenant's limit.
    max_concurrent_images: int | None = None

    @property
    def time_s(self) -> float:
        """Seconds from arrival to deadline."""
        return self.deadline_s - self.arrived_s

    @property
    def is_deprioritized(self) -> bool:
        return self.position[0]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return self.model + self.extras
