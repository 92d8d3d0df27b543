"""Whether a request may wait at all: better an early answer than a late one."""

from __future__ import annotations

from dataclasses import dataclass

from router.cost import Speeds
from router.fleet import Fleet
from router.queue import Queue
from router.request import Waiting


@dataclass(frozen=True, slots=True)
class Refusal:
    """``status`` is what HTTP would call it: 422 (this request, however empty the queue is), 429
    (this tenant) or 503 (everybody)."""

    status: int
    reason: str
    retry_after_s: float


#: A request must be expected to take so many times what is allowed to be refused for it: what is
#: measured varies, and a refusal corrects no measurement.
_CERTAIN = 2.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    per_tenant: int = 64
    total: int = 512


def refusal(
    request: Waiting, queue: Queue, fleet: Fleet, speeds: Speeds, limits: QueueLimits, now_s: float
) -> Refusal | None:
    """None to admit."""
    own_s = request.work / speeds.work_per_s
    allowed_s = request.deadline_s - now_s
    if speeds.is_measured and own_s > _CERTAIN * allowed_s:
        reason = f"it would take about {own_s:.0f} s alone, and {allowed_s:.0f} s are allowed"
        return Refusal(422, f"{reason}: ask for fewer steps, images or pixels", 0.0)
    mine = queue.count_of(request.tenant_id)
    if mine >= limits.per_tenant:
        reason = f"{mine} of your requests wait already; at most {limits.per_tenant} may"
        all_s = queue.work_by_tenant()[request.tenant_id] / speeds.work_per_s
        return Refusal(429, reason, max(1.0, all_s / max(1, len(fleet)) / mine))
    expected_s = expected_wait_s(request, queue, fleet, speeds, now_s)
    if len(queue) >= limits.total:
        return Refusal(503, f"{len(queue)} requests wait already", max(1.0, expected_s))
    if len(fleet) and now_s + expected_s > request.deadline_s:
        reason = f"the wait is about {expected_s:.0f} s, beyond the request's deadline"
        return Refusal(503, reason, max(1.0, now_s + expected_s - request.deadline_s))
    return None


def expected_wait_s(
    request: Waiting, queue: Queue, fleet: Fleet, speeds: Speeds, now_s: float
) -> float:
    """Seconds until a request that joins the queue now would start, roughly: it shares the
    replicas with every tenant that waits, as if all weighed the same, until its own turn has
    come."""
    if not len(fleet):
        return 0.0
    waiting = queue.work_by_tenant()
    own = waiting.get(request.tenant_id, 0.0) + request.work
    ahead = own - request.work
    for tenant, work in waiting.items():
        if tenant != request.tenant_id:
            ahead += min(work, own)
    return (ahead / speeds.work_per_s + fleet.total_busy_s(now_s)) / len(fleet)
