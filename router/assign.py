"""The assignment: which waiting request goes to which replica now. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from router.cost import Speeds, cost_s, fetch_s
from router.replica import Replica
from router.request import Waiting

#: A request whose recipe is resident may overtake only those younger than this.
AGE_BOUND_S = 2.0


@dataclass(frozen=True, slots=True)
class Assignment:
    request_id: str
    replica_id: str
    cost_s: float


def assign(
    waiting: Sequence[Waiting],
    replicas: Sequence[Replica],
    speeds: Speeds,
    now_s: float,
    drawing: Mapping[str, int] | None = None,
) -> list[Assignment]:
    """Assign as many requests as there are slots, in fair order. ``drawing`` says how many
    pictures of each tenant are under way.

    Each goes to the replica with the least cost over *all* replicas. If that one has
    no slot the request waits for it rather than fall through: a warm and busy replica
    may well beat an idle and cold one; the cost in seconds says when.
    """
    view = {replica.id: replica for replica in replicas}
    under_way = Counter(drawing)
    assignments = []
    for request in fair_order(waiting, replicas, speeds, now_s):
        most = request.pictures_at_once
        if most is not None and under_way[request.tenant_id] + request.pictures > most:
            continue
        candidates = [r for r in view.values() if r.id not in request.avoid] or list(view.values())
        if not any(r.has_slot for r in view.values()):
            break
        best = min(candidates, key=lambda r: (cost_s(request, r, speeds, now_s), r.id))
        if not best.has_slot:
            continue
        cost = cost_s(request, best, speeds, now_s)
        assignments.append(Assignment(request.id, best.id, cost))
        under_way[request.tenant_id] += request.pictures
        view[best.id] = replace(
            best,
            in_flight=best.in_flight + 1,
            free_at_s=now_s + cost,
            resident={
                **best.resident,
                "gpu": best.resident.get("gpu", frozenset()) | {b.key for b in request.blobs},
            },
        )
    return assignments


def fair_order(
    waiting: Sequence[Waiting], replicas: Sequence[Replica], speeds: Speeds, now_s: float
) -> list[Waiting]:
    """By virtual finish; a warm request goes first unless it would overtake an old one."""
    open_replicas = [r for r in replicas if r.has_slot]

    def is_warm(request: Waiting) -> bool:
        return any(fetch_s(request, r, speeds) == 0.0 for r in open_replicas)

    def key(request: Waiting) -> tuple[int, float, str]:
        is_old = now_s - request.arrived_s >= AGE_BOUND_S
        rank = 0 if is_old else 1
        if not is_old and not is_warm(request):
            rank = 2
        return (rank, request.virtual_finish, request.id)

    return sorted(waiting, key=key)
