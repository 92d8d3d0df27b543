"""A request on its way to the waiting room."""

from __future__ import annotations

from dataclasses import dataclass

from serving.generation.contract import GenerationTask


@dataclass(frozen=True, slots=True)
class Submission:
    """A request on its way to the waiting room. ``timeout_s`` counts from its arrival there;
    ``named`` holds the content keys of what it asks for beside the base model."""

    request: GenerationTask
    #: The queue that it waits in (``Principal.queue_id``).
    tenant_id: str
    weight: float
    timeout_s: float
    named: frozenset[str] = frozenset()
    #: How many pictures of the tenant may be drawn at a time; more wait.
    max_concurrent_images: int | None = None
    #: Among the requests of its tenant, the higher goes first.
    priority: int = 0
    #: Of GPUs; empty for the first that is configured.
    pool: str = ""
    #: The tenant's class, for figures.
    plan: str = ""
