"""How often an asset is missed when a tier of so many slots is full: the platform's own tier
beside the least recently used and beside Belady's optimum, on one stream in its own order."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from assets.content import Blob
from benchmarks.replay.trace import TraceRequest
from orchestrator.device_tier import DeviceTier
from orchestrator.eviction import AccessHistory
from orchestrator.ghosts import SESSION, Ghost, Law
from router.prefetch import Prefetcher

#: When, by whom, what.
Use = tuple[float, str, str]


def lora_uses(trace: Sequence[TraceRequest]) -> list[Use]:
    return [(r.arrival_s, r.tenant, name) for r in trace for name, _ in r.loras]


def lru_misses(uses: Sequence[Use], slots: int) -> int:
    kept: OrderedDict[str, None] = OrderedDict()
    misses = 0
    for _, _, name in uses:
        if name in kept:
            kept.move_to_end(name)
            continue
        misses += 1
        kept[name] = None
        if len(kept) > slots:
            kept.popitem(last=False)
    return misses


def belady_misses(uses: Sequence[Use], slots: int) -> int:
    """Whoever knows the future lets go of what is wanted last (Belady 1966)."""
    following = [0] * len(uses)
    seen: dict[str, int] = {}
    for at in range(len(uses) - 1, -1, -1):
        following[at] = seen.get(uses[at][2], len(uses))
        seen[uses[at][2]] = at
    wanted_at: dict[str, int] = {}
    latest: list[tuple[int, str]] = []
    misses = 0
    for at, (_, _, name) in enumerate(uses):
        if name not in wanted_at:
            misses += 1
            while len(wanted_at) >= slots:
                when, other = heapq.heappop(latest)
                if wanted_at.get(other) == -when:
                    del wanted_at[other]
        wanted_at[name] = following[at]
        heapq.heappush(latest, (-following[at], name))
    return misses


def guesses(trace: Sequence[TraceRequest], lora_bytes: int) -> Prefetcher:
    """What the router's prefetcher made of the stream, in the stream's own time."""
    prefetcher = Prefetcher()
    for request in trace:
        blobs = [Blob(name, "", lora_bytes) for name, _ in request.loras]
        prefetcher.asked(request.tenant, blobs, request.arrival_s)
    return prefetcher


def tier_misses(uses: Sequence[Use], slots: int) -> int:
    """The tier that serves, with the stream's own time for its clock."""
    return played(uses, slots).misses


@dataclass(frozen=True, slots=True)
class Played:
    """``changes``: how often another law began to rule; ``recency_share``: of the uses, those for
    which LRU ruled."""

    misses: int
    changes: int
    recency_share: float


def played(uses: Sequence[Use], slots: int) -> Played:
    """The tier that serves, with the stream's own time for its clock."""
    now_s = 0.0
    tier: DeviceTier[None] = DeviceTier(slots, clock=lambda: now_s)
    misses = 0
    for now_s, tenant, name in uses:  # noqa: B007  (the clock reads it)
        lease, loaded = tier.admit(name, 1, lambda: None, tenant)
        lease.release()
        misses += loaded
    tier.check_integrity()
    ruled = tier.ruler.ruled
    return Played(misses, tier.ruler.changes, ruled[Law.RECENCY] / max(1, sum(ruled.values())))


def visits_misses(uses: Sequence[Use], slots: int) -> int:
    """The law by visits alone."""
    visits = AccessHistory(SESSION * slots)
    ghost = Ghost(slots, SESSION * slots, visits.worth)
    return sum(
        ghost.used(name, 1, visits.used(name, 1, tenant, at_s)) for at_s, tenant, name in uses
    )
