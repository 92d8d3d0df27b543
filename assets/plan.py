"""Service plans: the limits of a tenant."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """A service plan. None means unlimited.

    ``weight`` is the queue share; ``concurrent_pictures`` are generated at a time, others queue;
    ``gpu_s_per_month``: engine seconds per calendar month in UTC.
    """

    name: str = "unlimited"
    weight: float = 1.0
    requests_per_min: int | None = None
    concurrent_pictures: int | None = None
    storage_bytes: int | None = None
    assets: int | None = None
    gpu_s_per_month: float | None = None


UNLIMITED = Plan()
