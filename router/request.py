"""The router's view of a queued request."""

from __future__ import annotations

from dataclasses import dataclass

from assets.content import Blob

#: Whether the request is deprioritized, and its virtual finish time.
QueuePosition = tuple[bool, float]


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A queued request.

    ``work`` is steps × pixels × images. ``model`` holds the blobs that are swapped as a whole (the
    checkpoint's components and the VAE), ``extras`` those applied on top (LoRAs, inversions).
    ``group`` is the primary routing key: the content key of the checkpoint's UNet. ``position`` is
    the place in the fair order (see fairness.py). ``avoid`` holds the replicas on which this
    request has failed.
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
    #: Orders the requests of one tenant; the highest runs first.
    priority: int = 0
    avoid: frozenset[str] = frozenset()
    images: int = 1
    #: The most images that its tenant may generate concurrently; None means no limit.
    max_concurrent_images: int | None = None

    @property
    def time_s(self) -> float:
        """The seconds between arrival and deadline."""
        return self.deadline_s - self.arrived_s

    @property
    def is_deprioritized(self) -> bool:
        """Whether its tenant was over its share, so that others go first."""
        return self.position[0]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return self.model + self.extras
