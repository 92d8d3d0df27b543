"""Bodies of asynchronous jobs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from serving.api.models.common import Timestamp
from serving.generation.contract import Phase
from serving.generation.events import Starting


class PoolStart(BaseModel):
    """A GPU pool starts from zero: its name, phase and the seconds of each phase."""

    name: str
    phase: Phase
    start_s: dict[Phase, float]

    @classmethod
    def of(cls, starting: Starting) -> PoolStart:
        return cls(name=starting.pool, phase=starting.phase, start_s=dict(starting.spent_s))


class JobProgress(BaseModel):
    """The fields of the current phase's events. ``phase`` is the name of the last event. Newer
    builds may add fields."""

    model_config = ConfigDict(extra="allow")

    phase: str
    position: int | None = None
    expected_s: float | None = None
    replica: str | None = None
    attempt: int | None = None
    blobs: int | None = None
    step: int | None = None
    steps: int | None = None
    first: int | None = None
    images: int | None = None
    fraction: float | None = None
    index: int | None = None


class JobState(BaseModel):
    """A job's state; a failed job is ``completed``, with the error as its result."""

    status: Literal["pending", "running", "completed"]
    state: Literal["pending", "running", "completed", "failed", "cancelled"]
    response_url: str | None = None
    starting: PoolStart | None = None
    progress: JobProgress | None = None


class ListedJob(BaseModel):
    id: str
    status: Literal["pending", "running", "completed", "failed", "cancelled"]
    created_at: Timestamp
    finished_at: Timestamp | None
    images: int
    steps: int
    gpu: str
    priority: int
    key: str
    attempts_failed: int


class JobPage(BaseModel):
    """A page of jobs; ``next`` is the next ``after``."""

    data: list[ListedJob]
    has_more: bool
    next: str | None
