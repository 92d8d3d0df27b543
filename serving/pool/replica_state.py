"""The dispatcher's state of a replica, and of a request that is queued or running."""

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
    """The dispatcher's client of a replica. Every method raises ReplicaLost when it is dead."""

    id: str

    async def describe(self, directives: ClusterDirectives) -> ReplicaReport:
        """Send the directives and return the replica's report. Waits until the replica is up."""

    async def generate(self, request: GenerationTask) -> tuple[GenerationResult, ReplicaReport]:
        """Generate images. Cancelling the call stops the generation."""

    async def forget(self, keys: Collection[str]) -> ReplicaReport:
        """Delete the values of these content keys from every tier of the replica."""

    async def warm(self, blobs: Sequence[Blob]) -> str:
        """Load blobs into host RAM and return the lowest tier on which one was found."""


@dataclass(slots=True)
class ReplicaState:
    """The state of a replica; only the dispatcher changes it."""

    client: ReplicaClient
    report: ReplicaReport | None = None  # None: down, or not up yet
    running: dict[str, Ticket] = field(default_factory=dict)
    #: Whether a prefetch runs on it.
    promoting: bool = False
    #: Set to poll it before the interval has passed.
    news: asyncio.Event = field(default_factory=asyncio.Event)
    watcher: asyncio.Task[None] | None = None
    #: When it became idle.
    idle_since_s: float = 0.0
    #: It finishes its requests and gets no new ones.
    leaving: bool = False

    def first_begins(self, now_s: float) -> None:
        """Start the engine time of the first running request. The engine works on one request; the
        next is only prepared."""
        first = next(iter(self.running.values()), None)
        if first is not None and first.began_s is None:
            first.began_s = now_s


@dataclass(slots=True)
class Ticket:
    """A submitted request; only the dispatcher changes it, and its submitters await ``answer``."""

    submission: Submission
    waiting: QueuedRequest
    answer: asyncio.Future[GenerationResult]
    #: The number of submitters that wait; a second submission of the id joins the first.
    waiters: int = 0
    attempts: int = 0
    lost: bool = False  # the last attempt's replica was lost; to be retried
    task: asyncio.Task[None] | None = None
    #: When an engine began to work on it.
    began_s: float | None = None

    def engine_s(self, now_s: float) -> float:
        """The engine time of the current attempt in seconds. Earlier attempts lost their replica
        and are not charged."""
        return 0.0 if self.began_s is None else now_s - self.began_s
