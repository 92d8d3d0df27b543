"""The configuration of a pool of replicas."""

from __future__ import annotations

from collections.abc import Sequence
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


def pool_names(pools: Sequence[Pool]) -> dict[str, str]:
    """Pool names by pool name and by kind of GPU (the first pool of that kind)."""
    kinds = {pool.gpu: pool.name for pool in reversed(pools) if pool.gpu}
    return {**kinds, **{pool.name: pool.name for pool in pools}}
