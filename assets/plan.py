"""What a tenant may use of the platform."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """A service plan. None means without limit.

    ``weight`` is a share in the queue; ``concurrent_pictures`` are drawn at a time, and more
    wait; ``gpu_s_per_month`` is a budget of engine seconds, by the calendar month in UTC.
    """

    name: str = "unlimited"
    weight: float = 1.0
    requests_per_min: int | None = None
    concurrent_pictures: int | None = None
    storage_bytes: int | None = None
    assets: int | None = None
    gpu_s_per_month: float | None = None


UNLIMITED = Plan()
