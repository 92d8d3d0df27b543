"""The dispatcher's state of each replica and request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from assets.content import Blob
from router.request import QueuedRequest
from serving.generation.contract import (
    Attempt,
    ClusterDirectives,
    GenerationResult,
    Inquiry,
    ReplicaReport,
)
from serving.generation.submission import Submission


class ReplicaClient(Protocol):
    """A client of a replica. Every method raises ReplicaLost when it is dead."""

    id: str

    async def describe(self, directives: ClusterDirectives) -> ReplicaReport:
        """Send the directives; return the report once the replica is up."""

    async def generate(
        self, attempt: Attempt, forward: Callable[[bytes], None]
    ) -> tuple[GenerationResult, ReplicaReport]:
        """Generate images; ``forward`` gets the encoded events. Cancelling stops the generation."""

    async def progress(self, inquiry: Inquiry) -> bytes | None:
        """Return the encoded last step of a running request; set what it reports."""

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
    #: Of the current or last attempt.
    client: ReplicaClient | None = None
    #: When an engine began it.
    began_s: float | None = None

    def engine_s(self, now_s: float) -> float:
        """Return the current attempt's seconds; lost ones are not charged."""
        return 0.0 if self.began_s is None else now_s - self.began_s


class Tickets:
    """The submitted requests, by id and by the job or request that is followed."""

    def __init__(self) -> None:
        self._tickets: dict[str, Ticket] = {}
        self._followed: dict[str, Ticket] = {}

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets.values())

    def __getitem__(self, request_id: str) -> Ticket:
        return self._tickets[request_id]

    def get(self, request_id: str) -> Ticket | None:
        return self._tickets.get(request_id)

    def of(self, key: str) -> Ticket | None:
        """The latest request of a followed key."""
        return self._followed.get(key)

    def add(self, ticket: Ticket) -> None:
        self._tickets[ticket.waiting.id] = ticket
        self._followed[ticket.submission.key] = ticket

    def remove(self, ticket: Ticket) -> None:
        """Remove a request, if present."""
        self._tickets.pop(ticket.waiting.id, None)
        if self._followed.get(ticket.submission.key) is ticket:
            del self._followed[ticket.submission.key]
