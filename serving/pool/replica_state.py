"""The dispatcher's state of each replica and request."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from assets.content import Blob
from router.request import QueuedRequest
from serving.generation.contract import (
    ClusterDirectives,
    GenerationResult,
    GenerationTask,
    ReplicaReport,
)
from serving.generation.submission import Submission


class ReplicaClient(Protocol):
    """A client of a replica. Every method raises ReplicaLost when it is dead."""

    id: str

    async def describe(self, directives: ClusterDirectives) -> ReplicaReport:
        """Send the directives; return the report once the replica is up."""

    async def generate(self, request: GenerationTask) -> tuple[GenerationResult, ReplicaReport]:
        """Generate images. Cancelling stops the generation."""

    async def forget(self, keys: Collection[str]) -> ReplicaReport: ...

    async def warm(self, blobs: Sequence[Blob]) -> str:
        """Load into host RAM; return the lowest tier found on."""


@dataclass(slots=True)
class ReplicaState:
    """Only the dispatcher changes it."""

    client: ReplicaClient
    report: ReplicaReport | None = None  # None: not up
    running: dict[str, Ticket] = field(default_factory=dict)
    promoting: bool = False
    #: Set to poll now.
    news: asyncio.Event = field(default_factory=asyncio.Event)
    watcher: asyncio.Task[None] | None = None
    idle_since_s: float = 0.0
    leaving: bool = False

    def first_begins(self, now_s: float) -> None:
        """Begin the first request's engine time; the next is only prepared."""
        first = next(iter(self.running.values()), None)
        if first is not None and first.began_s is None:
            first.began_s = now_s


@dataclass(slots=True)
class Ticket:
    """A submitted request; only the dispatcher changes it."""

    submission: Submission
    waiting: QueuedRequest
    answer: asyncio.Future[GenerationResult]
    #: Submitters that await ``answer``.
    waiters: int = 0
    attempts: int = 0
    lost: bool = False  # its replica was lost; to be retried
    task: asyncio.Task[None] | None = None
    #: When an engine began it.
    began_s: float | None = None

    def engine_s(self, now_s: float) -> float:
        """Return the current attempt's seconds; lost ones are not charged."""
        return 0.0 if self.began_s is None else now_s - self.began_s
