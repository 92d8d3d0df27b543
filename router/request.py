"""A request that waits, as the router sees it."""

from __future__ import annotations

from dataclasses import dataclass

from assets.content import Blob


@dataclass(frozen=True, slots=True)
class Waiting:
    """``work`` is steps × pixels × images; ``weight`` the tenant's share of the queue.

    ``virtual_finish`` orders tenants fairly (see fairness.py). ``avoid`` holds the
    replicas on which this request has failed already.
    """

    id: str
    tenant_id: str
    work: float
    blobs: tuple[Blob, ...]
    arrived_s: float
    deadline_s: float
    virtual_finish: float
    avoid: frozenset[str] = frozenset()
    pictures: int = 1
    #: How many pictures of its tenant may be drawn at a time; None is as many as there are slots.
    pictures_at_once: int | None = None
