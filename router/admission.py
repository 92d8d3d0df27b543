"""Admission control: queue a request or refuse it.

When the queue is full, the tenant with the most requests loses its last one (longest queue drop:
Suter, Lakshman, Stiliadis and Choudhury, Design considerations for supporting TCP with per-flow
queueing, INFOCOM 1998).
"""

from __future__ import annotations

from dataclasses import dataclass

from router.cost import Speeds
from router.fleet import Fleet
from router.queue import Queue
from router.request import QueuedRequest


@dataclass(frozen=True, slots=True)
class Refusal:
    """``status`` is the HTTP status: 422 (misses its deadline even on an empty queue), 429 (the
    tenant's limit) or 503 (the queue is too long)."""

    status: int
    reason: str
    retry_after_s: float


#: Margin of the deadline: estimates vary, and a refused request yields no new measurement.
_REFUSAL_MARGIN = 2.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The most queued requests."""

    per_tenant: int = 64
    total: int = 512


@dataclass(frozen=True, slots=True)
class Admission:
    """The decision; ``displaced`` is a queued request to remove, with its refusal."""

    refusal: Refusal | None = None
    displaced: tuple[QueuedRequest, Refusal] | None = None


def admission(
    request: QueuedRequest,
    queue: Queue,
    fleet: Fleet,
    speeds: Speeds,
    limits: QueueLimits,
    now_s: float,
) -> Admission:
    """Decide on an arrival (of ``position``, only ``is_deprioritized`` matters)."""
    refusal = _refusal(request, queue, fleet, speeds, limits, now_s)
    if refusal is not None or len(queue) < limits.total:
        return Admission(refusal)
    displaced = _pick_displaced(request, queue)
    if displaced is None:
        expected_s = expected_wait_s(request, queue, fleet, speeds, now_s)
        reason = f"the queue is full ({len(queue)} requests); retry later"
        return Admission(Refusal(503, reason, max(1.0, expected_s)))
    reason = (
        "the queue is full, and your tenant has the most requests in it or is over its share; "
        "retry later"
    )
    retry_after_s = _mean_turn_s(displaced.tenant_id, queue, fleet, speeds)
    return Admission(None, (displaced, Refusal(429, reason, retry_after_s)))


def _pick_displaced(request: QueuedRequest, queue: Queue) -> QueuedRequest | None:
    """Return the last request of the tenant with the most requests per weight, if above the
    arrival's; deprioritized ones rank first unless the arrival is one."""

    def rank(waiting: QueuedRequest, count: int) -> tuple[bool, float]:
        return waiting.is_deprioritized and not request.is_deprioritized, count / waiting.weight

    highest, displaced = rank(request, queue.backlogs.count_of(request.tenant_id) + 1), None
    for tenant_id in queue.backlogs.work_by_tenant:
        candidates = [waiting for waiting in queue.backlogs.of(tenant_id) if not waiting.avoid]
        if candidates and tenant_id != request.tenant_id:
            last = max(candidates, key=lambda waiting: waiting.position)
            last_rank = rank(last, queue.backlogs.count_of(tenant_id))
            if last_rank > highest:
                highest, displaced = last_rank, last
    return displaced


def _mean_turn_s(tenant_id: str, queue: Queue, fleet: Fleet, speeds: Speeds) -> float:
    work_s = queue.backlogs.work_by_tenant[tenant_id] / speeds.work_per_s
    return max(1.0, work_s / max(1, len(fleet)) / queue.backlogs.count_of(tenant_id))


def _refusal(
    request: QueuedRequest,
    queue: Queue,
    fleet: Fleet,
    speeds: Speeds,
    limits: QueueLimits,
    now_s: float,
) -> Refusal | None:
    own_s = request.work / speeds.work_per_s
    allowed_s = request.deadline_s - now_s
    if speeds.is_measured and own_s > _REFUSAL_MARGIN * allowed_s:
        reason = (
            f"the generation takes about {own_s:.0f} s, but the deadline is in {allowed_s:.0f} s"
        )
        return Refusal(422, f"{reason}: request fewer steps, images or pixels", 0.0)
    count = queue.backlogs.count_of(request.tenant_id)
    if count >= limits.per_tenant:
        reason = (
            f"you have {count} queued requests and the limit is {limits.per_tenant}; retry later"
        )
        return Refusal(429, reason, _mean_turn_s(request.tenant_id, queue, fleet, speeds))
    expected_s = expected_wait_s(request, queue, fleet, speeds, now_s)
    if len(fleet) and now_s + expected_s > request.deadline_s:
        reason = f"the expected wait of {expected_s:.0f} s exceeds the request's deadline"
        return Refusal(503, reason, max(1.0, now_s + expected_s - request.deadline_s))
    return None


def expected_wait_s(
    request: QueuedRequest, queue: Queue, fleet: Fleet, speeds: Speeds, now_s: float
) -> float:
    """Estimate the seconds until a request that joins the queue now starts.

    Tenants share the replicas equally; those deprioritized behind it do not count.
    """
    if not len(fleet):
        return 0.0
    queued_work = queue.backlogs.work_by_tenant
    own = queued_work.get(request.tenant_id, 0.0) + request.work
    ahead = own - request.work
    for tenant, work in queued_work.items():
        if tenant != request.tenant_id and (
            request.is_deprioritized or not queue.backlogs.is_deprioritized(tenant)
        ):
            ahead += min(work, own)
    return (ahead / speeds.work_per_s + fleet.total_busy_s(now_s)) / len(fleet)
