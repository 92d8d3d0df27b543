"""Where queued requests stand: estimates to show, which decide nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from router.cost import Speeds
from router.fleet import Fleet
from router.queue import Queue


class QueueStanding(NamedTuple):
    """``expected_s``: until it starts; None without a replica."""

    position: int
    expected_s: float | None


def standings(
    queue: Queue, fleet: Fleet, speeds: Speeds, now_s: float
) -> Mapping[str, QueueStanding]:
    """Return each queued request's standing by id, in fair order over all checkpoints."""
    found: dict[str, QueueStanding] = {}
    work = 0.0
    busy_s = fleet.total_busy_s(now_s)
    for position, request in enumerate(sorted(queue, key=lambda request: request.position)):
        expected_s = (work / speeds.work_per_s + busy_s) / len(fleet) if len(fleet) else None
        found[request.id] = QueueStanding(position, expected_s)
        work += request.work
    return found
