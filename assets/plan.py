"""Service plans: the limits of a tenant."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """A service plan. None means unlimited.

    ``weight`` is the tenant's share of the queue; ``concurrent_pictures`` is how many images are
    generated at a time, the rest being queued; ``gpu_s_per_month`` is a budget of engine seconds
    per calendar month in UTC.
    """

    name: str = "unlimited"
    weight: float = 1.0
    requests_per_min: int | None = None
    concurrent_pictures: int | None = None
    storage_bytes: int | None = None
    assets: int | None = None
    gpu_s_per_month: float | None = None


UNLIMITED = Plan()
