"""Whether a request may wait at all: better an early answer than a late one.

When no place is free, the tenant with the most places gives up its last (the longest queue drops:
Suter, Lakshman, Stiliadis and Choudhury, Design considerations for supporting TCP with per-flow
queueing, INFOCOM 1998): a tenant over its share costs the others no refusals.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.cost import Speeds
from router.fleet import Fleet
from router.queue import Queue
from router.request import QueuedRequest


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


@dataclass(frozen=True, slots=True)
class Admission:
    """The decision on a new request: it waits unless there is a ``refusal``. If the queue was full,
    ``displaced`` is the request that gives up its place, with the refusal to answer it with."""

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
    """Changes nothing. Of the request's ``position`` only counts whether it steps back."""
    refused = _refusal(request, queue, fleet, speeds, limits, now_s)
    if refused is not None or len(queue) < limits.total:
        return Admission(refused)
    displaced = _displaced(request, queue)
    if displaced is None:
        expected_s = expected_wait_s(request, queue, fleet, speeds, now_s)
        reason = f"{len(queue)} requests wait already"
        return Admission(Refusal(503, reason, max(1.0, expected_s)))
    reason = "the queue is full, and your tenant has the most requests in it or is over its share"
    turn_s = _turn_s(displaced.tenant_id, queue, fleet, speeds)
    return Admission(None, (displaced, Refusal(429, reason, turn_s)))


def _displaced(request: QueuedRequest, queue: Queue) -> QueuedRequest | None:
    """The request that gives up its place: the last one of the tenant with the most requests, by
    weight. Tenants that step back come first, if the new request does not. None if the new
    request's tenant would have as many."""

    def rank(waiting: QueuedRequest, count: int) -> tuple[bool, float]:
        return waiting.is_deprioritized and not request.is_deprioritized, count / waiting.weight

    own = rank(request, queue.count_of(request.tenant_id) + 1)
    most, chosen = own, None
    for tenant_id in queue.work_by_tenant():
        # What has been taken and lost already keeps its place.
        may_go = [waiting for waiting in queue.of(tenant_id) if not waiting.avoid]
        if may_go and tenant_id != request.tenant_id:
            last = max(may_go, key=lambda waiting: waiting.position)
            theirs = rank(last, queue.count_of(tenant_id))
            if theirs > most:
                most, chosen = theirs, last
    return chosen


def _turn_s(tenant_id: str, queue: Queue, fleet: Fleet, speeds: Speeds) -> float:
    """How long one of a tenant's waiting requests takes all replicas, on average."""
    all_s = queue.work_by_tenant()[tenant_id] / speeds.work_per_s
    return max(1.0, all_s / max(1, len(fleet)) / queue.count_of(tenant_id))


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
    if speeds.is_measured and own_s > _CERTAIN * allowed_s:
        reason = f"it would take about {own_s:.0f} s alone, and {allowed_s:.0f} s are allowed"
        return Refusal(422, f"{reason}: ask for fewer steps, images or pixels", 0.0)
    mine = queue.count_of(request.tenant_id)
    if mine >= limits.per_tenant:
        reason = f"{mine} of your requests wait already; at most {limits.per_tenant} may"
        return Refusal(429, reason, _turn_s(request.tenant_id, queue, fleet, speeds))
    expected_s = expected_wait_s(request, queue, fleet, speeds, now_s)
    if len(fleet) and now_s + expected_s > request.deadline_s:
        reason = f"the wait is about {expected_s:.0f} s, beyond the request's deadline"
        return Refusal(503, reason, max(1.0, now_s + expected_s - request.deadline_s))
    return None


def expected_wait_s(
    request: QueuedRequest, queue: Queue, fleet: Fleet, speeds: Speeds, now_s: float
) -> float:
    """Seconds until a request that joins the queue now would start, roughly: it shares the
    replicas with every tenant that waits, as if all weighed the same, until its own turn has
    come; those that step back behind it are not in its way."""
    if not len(fleet):
        return 0.0
    waiting = queue.work_by_tenant()
    own = waiting.get(request.tenant_id, 0.0) + request.work
    ahead = own - request.work
    for tenant, work in waiting.items():
        if tenant != request.tenant_id and (
            request.is_deprioritized or not queue.is_deprioritized(tenant)
        ):
            ahead += min(work, own)
    return (ahead / speeds.work_per_s + fleet.total_busy_s(now_s)) / len(fleet)
