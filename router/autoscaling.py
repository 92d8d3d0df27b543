"""The autoscaling decision: how many replicas to start and which to stop.

As in serverless GPU services, a replica starts when more requests are queued than the queue size,
or for an empty pool's first, and stops after its idle time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.pool import Pool


@dataclass(frozen=True, slots=True)
class ScalingCandidate:
    """A replica; if not up, it is starting or restarting.

    ``running`` includes requests prepared, not generating yet. ``value_s``: expected seconds of
    reloading if it is stopped.
    """

    id: str
    is_up: bool
    running: int = 0
    idle_since_s: float = 0.0
    value_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many replicas to start, and which to stop."""

    start: int = 0
    stop: tuple[str, ...] = ()


def queued(waiting: int, members: Sequence[ScalingCandidate]) -> int:
    """Return the number of requests not generating yet, including those sent to a busy replica."""
    return waiting + sum(max(0, member.running - 1) for member in members)


def scale(
    pool: Pool, waiting: int, members: Sequence[ScalingCandidate], now_s: float, leaving: int = 0
) -> Scaling:
    """Return what to start and stop. Draining replicas (``leaving``) still hold a GPU."""
    backlog = queued(waiting, members)
    available = sum(1 for member in members if not member.is_up or not member.running)
    start = max(0, pool.min - len(members))
    if backlog and not members:
        start = max(start, 1)
    while len(members) + start < pool.max and backlog - available - start > pool.queue_size:
        start += 1
    room = max(0, pool.max - len(members) - leaving)
    return Scaling(min(start, room), _to_stop(pool, backlog, members, now_s))


def _to_stop(
    pool: Pool, backlog: int, members: Sequence[ScalingCandidate], now_s: float
) -> tuple[str, ...]:
    if backlog:
        return ()
    idle = [member for member in members if member.is_up and not member.running]
    excess = len(members) - pool.max
    due = [member for member in idle if now_s - member.idle_since_s >= pool.idle_s]
    count = min(len(members) - pool.min, max(len(due), min(excess, len(idle))))
    candidates = due if count <= len(due) else idle
    by_value = sorted(candidates, key=lambda m: (m.value_s, m.idle_since_s, m.id))
    return tuple(member.id for member in by_value[: max(0, count)])
