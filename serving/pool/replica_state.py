"""A replica as its dispatcher knows it, and a request that waits or is being drawn."""

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
    """How a dispatcher reaches a replica. Both raise ReplicaLost when it is dead."""

    id: str

    async def describe(self, directives: ClusterDirectives) -> ReplicaReport:
        """Tell it what the dispatcher knows, and hear what it holds. Waits until the replica is
        up, for as long as that takes."""

    async def generate(self, request: GenerationTask) -> tuple[GenerationResult, ReplicaReport]:
        """Cancelling the call stops the drawing."""

    async def forget(self, keys: Collection[str]) -> ReplicaReport:
        """Drop the values of these content keys from every tier that it reaches."""

    async def warm(self, blobs: Sequence[Blob]) -> str:
        """Bring blobs up to host RAM; the lowest tier on which one of them was found."""


@dataclass(slots=True)
class ReplicaState:
    """Only the dispatcher changes it."""

    client: ReplicaClient
    report: ReplicaReport | None = None  # None: down, or not up yet
    running: dict[str, Ticket] = field(default_factory=dict)
    #: Whether something is brought up there ahead of the requests that will want it.
    promoting: bool = False
    #: Set when there is something to tell it before it is asked again anyway.
    news: asyncio.Event = field(default_factory=asyncio.Event)
    watcher: asyncio.Task[None] | None = None
    #: Since when it has had nothing to do.
    idle_since_s: float = 0.0
    #: It finishes what it has, and is not asked again.
    leaving: bool = False

    def first_begins(self, now_s: float) -> None:
        """The engine is the first one's; what comes behind it is prepared and waits."""
        first = next(iter(self.running.values()), None)
        if first is not None and first.began_s is None:
            first.began_s = now_s


@dataclass(slots=True)
class Ticket:
    """Only the dispatcher changes it; whoever submitted waits for ``answer``."""

    submission: Submission
    waiting: QueuedRequest
    answer: asyncio.Future[GenerationResult]
    #: How many wait for it: who submits an id again may be there before the first has gone.
    waiters: int = 0
    attempts: int = 0
    lost: bool = False  # the last attempt ended with its replica
    task: asyncio.Task[None] | None = None
    #: Since when an engine has been its own.
    began_s: float | None = None

    def engine_s(self, now_s: float) -> float:
        """Of the attempt that is under way; earlier ones ended with their replica, which is not
        the request's fault."""
        return 0.0 if self.began_s is None else now_s - self.began_s
