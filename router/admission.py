"""Whether a request may wait at all: better an early answer than a late one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.cost import Speeds, busy_s
from router.replica import Replica
from router.request import Waiting


@dataclass(frozen=True, slots=True)
class Refusal:
    """``status`` is what HTTP would call it: 429 (this tenant) or 503 (everybody)."""

    status: int
    reason: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class QueueLimits:
    per_tenant: int = 64
    total: int = 512


def admit(
    request: Waiting,
    waiting: Sequence[Waiting],
    replicas: Sequence[Replica],
    speeds: Speeds,
    limits: QueueLimits,
    now_s: float,
) -> Refusal | None:
    """None to admit. Pure."""
    mine = sum(other.tenant_id == request.tenant_id for other in waiting)
    expected = expected_wait_s(waiting, replicas, speeds, now_s)
    if mine >= limits.per_tenant:
        reason = f"{mine} of your requests wait already; at most {limits.per_tenant} may"
        return Refusal(429, reason, max(1.0, expected))
    if len(waiting) >= limits.total:
        return Refusal(503, f"{len(waiting)} requests wait already", max(1.0, expected))
    if replicas and now_s + expected > request.deadline_s:
        reason = f"the wait is about {expected:.0f} s, beyond the request's deadline"
        return Refusal(503, reason, max(1.0, expected))
    return None


def expected_wait_s(
    waiting: Sequence[Waiting], replicas: Sequence[Replica], speeds: Speeds, now_s: float
) -> float:
    """Seconds until a request that joins the queue now would start, roughly."""
    if not replicas:
        return 0.0
    queued = sum(request.work for request in waiting) / speeds.work_per_s
    busy = sum(busy_s(replica, now_s) for replica in replicas)
    return (queued + busy) / len(replicas)
