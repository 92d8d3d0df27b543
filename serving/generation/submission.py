"""A generation task with its scheduling attributes."""

from __future__ import annotations

from msgspec import Struct

from serving.generation.contract import GenerationTask


class Submission(Struct, frozen=True, tag_field="type", tag="submission"):
    """``timeout_s`` counts from arrival in the queue; ``named``: keys of referenced assets."""

    request: GenerationTask
    #: ``Principal.queue_id``.
    tenant_id: str
    weight: float
    timeout_s: float
    named: frozenset[str] = frozenset()
    #: Of the tenant; more wait.
    max_concurrent_images: int | None = None
    priority: int = 0
    plan: str = ""
    #: The job, if any, by which it is followed, and its run, by which it is cancelled.
    job_id: str = ""
    run_id: str = ""

    @property
    def key(self) -> str:
        """By which the request is followed."""
        return self.job_id or self.request.id


class Cancellation(Struct, frozen=True, tag_field="type", tag="cancellation"):
    """Cancels a run of a job, also one that is still on its way; the job may run again."""

    job_id: str
    run_id: str
