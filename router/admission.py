"""Admission control: accept a request into the queue or refuse it early.

When the queue is full, the tenant with the most queued requests loses its last one (longest queue
drop: Suter, Lakshman, Stiliadis and Choudhury, Design considerations for supporting TCP with
per-flow queueing, INFOCOM 1998), so a tenant over its share causes no refusals for others.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.cost import Speeds
from router.fleet import Fleet
from router.queue import Queue
from router.request import QueuedRequest


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason for a refusal. ``status`` is the HTTP status: 422 (the request cannot meet its
    deadline even on an empty queue), 429 (the tenant's limit) or 503 (the queue is too long)."""

    status: int
    reason: str
    retry_after_s: float


#: A request is refused as too long only if its estimate exceeds the allowed time by this factor:
#: measurements vary, and a refused request yields no new measurement.
_REFUSAL_MARGIN = 2.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The maximum number of queued requests, per tenant and in total."""

    per_tenant: int = 64
    total: int = 512


@dataclass(frozen=True, slots=True)
class Admission:
    """The admission decision: the request is queued unless there is a ``refusal``. ``displaced`` is
    a queued request to remove, and the refusal to answer it with."""

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
    """Decide on an arriving request without changing the queue. Of its ``position``, only
    ``is_deprioritized`` matters."""
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
    """Return the last request of the tenant with the most queued requests per weight, preferring
    deprioritized ones if ``request`` is not; None if no tenant ranks above that of ``request``."""

    def rank(waiting: QueuedRequest, count: int) -> tuple[bool, float]:
        return waiting.is_deprioritized and not request.is_deprioritized, count / waiting.weight

    highest, displaced = rank(request, queue.count_of(request.tenant_id) + 1), None
    for tenant_id in queue.work_by_tenant():
        # A requeued request, which a replica has lost before, is never displaced.
        candidates = [waiting for waiting in queue.of(tenant_id) if not waiting.avoid]
        if candidates and tenant_id != request.tenant_id:
            last = max(candidates, key=lambda waiting: waiting.position)
            last_rank = rank(last, queue.count_of(tenant_id))
            if last_rank > highest:
                highest, displaced = last_rank, last
    return displaced


def _mean_turn_s(tenant_id: str, queue: Queue, fleet: Fleet, speeds: Speeds) -> float:
    """Return the mean seconds the whole fleet needs for one of the tenant's queued requests."""
    work_s = queue.work_by_tenant()[tenant_id] / speeds.work_per_s
    return max(1.0, work_s / max(1, len(fleet)) / queue.count_of(tenant_id))


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
    count = queue.count_of(request.tenant_id)
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
    """Estimate the seconds until a request that joins the queue now would start: the tenants with
    queued requests share the replicas equally, and those deprioritized behind it do not count."""
    if not len(fleet):
        return 0.0
    queued_work = queue.work_by_tenant()
    own = queued_work.get(request.tenant_id, 0.0) + request.work
    ahead = own - request.work
    for tenant, work in queued_work.items():
        if tenant != request.tenant_id and (
            request.is_deprioritized or not queue.is_deprioritized(tenant)
        ):
            ahead += min(work, own)
    return (ahead / speeds.work_per_s + fleet.total_busy_s(now_s)) / len(fleet)
