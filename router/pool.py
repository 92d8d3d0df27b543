"""The configuration of a pool of replicas."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool on one kind of GPU (such as a10g; empty: any)."""

    name: str
    gpu: str = ""
    queue_size: int = 2
    min: int = 0
    max: int = 1
    idle_s: float = 180.0
