"""A generation task with its scheduling attributes."""

from __future__ import annotations

from dataclasses import dataclass

from serving.generation.contract import GenerationTask


@dataclass(frozen=True, slots=True)
class Submission:
    """A task submitted to a pool's queue.

    ``timeout_s`` counts from its arrival in the queue; ``named`` holds the content keys of the
    assets it references, without those of the base model.
    """

    request: GenerationTask
    #: The queue it waits in (``Principal.queue_id``).
    tenant_id: str
    weight: float
    timeout_s: float
    named: frozenset[str] = frozenset()
    #: The most images of the tenant that may be generated at a time; more wait.
    max_concurrent_images: int | None = None
    #: Higher goes first, among the requests of the same tenant.
    priority: int = 0
    #: The GPU pool; empty for the first configured one.
    pool: str = ""
    #: The name of the tenant's plan, for metrics.
    plan: str = ""
