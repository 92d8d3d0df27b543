"""How many GPUs a pool has, and which of them may go: a pure decision.

What operators of serverless GPUs know: one more starts when more requests wait than the queue
size, up to the maximum; then they wait in order. One that has had nothing to do for longer than
its idle time goes, down to the minimum, zero included. A pool that sleeps is woken by the
first request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pool:
    """GPUs of one kind. ``gpu`` names it ("a10g"); without one, any machine will do."""

    name: str
    gpu: str = ""
    queue_size: int = 2
    min: int = 0
    max: int = 1
    idle_s: float = 180.0


@dataclass(frozen=True, slots=True)
class ScalingCandidate:
    """A replica of the pool. One that is not up is starting, or comes back after it died.

    ``running`` counts what it draws and what it has been given to draw next; ``value_s`` is how
    many seconds it would take to bring back what goes with it and is wanted.
    """

    id: str
    is_up: bool
    running: int = 0
    idle_since_s: float = 0.0
    value_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many to start, and which to stop."""

    start: int = 0
    stop: tuple[str, ...] = ()


def queued(waiting: int, members: Sequence[ScalingCandidate]) -> int:
    """Requests that nobody draws yet: those in the waiting room, and those behind a drawing."""
    return waiting + sum(max(0, member.running - 1) for member in members)


def scale(
    pool: Pool, waiting: int, members: Sequence[ScalingCandidate], now_s: float, leaving: int = 0
) -> Scaling:
    """What should change now, for ``waiting`` requests in the waiting room that could be drawn
    now. ``leaving`` more have their GPUs yet, and get nothing new."""
    behind = queued(waiting, members)
    # Each of these takes one as soon as it can; only who is left over waits for more GPUs.
    takers = sum(1 for member in members if not member.is_up or not member.running)
    start = max(0, pool.min - len(members))
    if behind and not members:
        start = max(start, 1)
    while len(members) + start < pool.max and behind - takers - start > pool.queue_size:
        start += 1
    room = max(0, pool.max - len(members) - leaving)
    return Scaling(min(start, room), _idle(pool, behind, members, now_s))


def _idle(
    pool: Pool, behind: int, members: Sequence[ScalingCandidate], now_s: float
) -> tuple[str, ...]:
    """Of those that do nothing, the ones with the least to lose; never one that draws."""
    if behind:
        return ()
    idle = [member for member in members if member.is_up and not member.running]
    over = len(members) - pool.max
    due = [member for member in idle if now_s - member.idle_since_s >= pool.idle_s]
    count = min(len(members) - pool.min, max(len(due), min(over, len(idle))))
    candidates = due if count <= len(due) else idle
    by_value = sorted(candidates, key=lambda m: (m.value_s, m.idle_since_s, m.id))
    return tuple(member.id for member in by_value[: max(0, count)])
