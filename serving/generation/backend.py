"""What runs generations, in this process or in the cluster: a Protocol for each of its users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client.metrics_core import Metric

from assets.content import Blob
from serving.generation.contract import Detail, GenerationResult, Residency
from serving.generation.events import Starting
from serving.generation.following import Followed
from serving.generation.status import DispatcherStatus, PoolEstimate, PoolStatus
from serving.generation.submission import Cancellation, Submission


class Generator(Protocol):
    async def submit(self, submission: Submission) -> GenerationResult: ...

    async def estimate(self, submission: Submission) -> PoolEstimate | None:
        """Estimate a request without submitting it; None: its pool sleeps or does not answer."""

    async def cancel(self, pool: str, cancellation: Cancellation) -> None:
        """Cancel a run of a job of ``pool``."""


class EventFeed(Protocol):
    """``pool`` may be empty: the default."""

    def follow(
        self, pool: str, key: str, detail: Detail, after: str, until: asyncio.Future[Any]
    ) -> AsyncGenerator[Followed | None]:
        """Yield the events of a job or request of ``pool`` until ``until`` is done; None in long
        silence."""

    async def progress(self, pool: str, key: str) -> Sequence[bytes]:
        """Return the encoded events of a request's present state; none if it is not known."""


class Tiers(Protocol):
    """The tiers of all nodes."""

    async def resident(self) -> frozenset[str]:
        """Return the keys in any tier of any node."""

    async def forget(self, keys: Collection[str]) -> None:
        """Evict ``keys``, which no live asset uses."""

    async def warm(self, blobs: Sequence[Blob]) -> Mapping[str, str]:
        """Load into host RAM on every node; return the tier found on, by replica."""

    async def residency(self, keys: Collection[str]) -> Mapping[str, Residency]: ...

    async def hold(self, keys: Collection[str]) -> None:
        """Replace the pinned keys."""


class PoolMonitor(Protocol):
    async def dispatchers(self) -> Mapping[str, DispatcherStatus]:
        """Return the status of each pool's queue and replicas, by the pool's name."""

    async def pools(self) -> Sequence[PoolStatus]: ...

    async def starting(self, pool: str) -> Starting | None:
        """Return the progress of ``pool`` (empty: the first), None if not starting."""

    async def families(self) -> Sequence[Metric]: ...


class GenerationBackend(Generator, EventFeed, Tiers, PoolMonitor, Protocol):
    """All of it: only what starts a gateway needs it whole."""
