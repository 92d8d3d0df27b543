"""What starts and stops replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from serving.pool.replica_state import ReplicaClient


class ReplicaLauncher(Protocol):
    """Starts and stops the replicas of one pool, under the autoscaler's names."""

    def client(self, name: str) -> ReplicaClient: ...

    async def existing(self) -> Sequence[str]:
        """Return all replicas, such as an earlier autoscaler's."""

    async def start(self, names: Sequence[str]) -> None:
        """Order replicas; returns before they are up."""

    async def stop(self, name: str) -> None:
        """Stop an idle replica and release its GPU."""

    async def failed(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the reasons of failed starts, by name."""
