"""Cache misses on a stream of uses: the platform's tier, LRU and Belady's optimum."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from assets.content import Blob
from benchmarks.replay.trace import TraceRequest
from orchestrator.device_tier import DeviceTier
from orchestrator.eviction import AccessHistory
from orchestrator.policy_selection import SESSION, EvictionPolicy, SimulatedTier
from router.prefetch import Prefetcher

#: Seconds, tenant, asset.
Use = tuple[float, str, str]


def lora_uses(trace: Sequence[TraceRequest]) -> list[Use]:
    """Return a trace's LoRA uses, in order."""
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
    """Misses when evicting the asset whose next use is furthest away (Belady 1966)."""
    next_use = [0] * len(uses)
    seen: dict[str, int] = {}
    for index in range(len(uses) - 1, -1, -1):
        next_use[index] = seen.get(uses[index][2], len(uses))
        seen[uses[index][2]] = index
    resident: dict[str, int] = {}  # asset → index of its next use
    furthest: list[tuple[int, str]] = []  # heap of (-next use, asset), with stale items
    misses = 0
    for index, (_, _, name) in enumerate(uses):
        if name not in resident:
            misses += 1
            while len(resident) >= slots:
                negated, other = heapq.heappop(furthest)
                if resident.get(other) == -negated:
                    del resident[other]
        resident[name] = next_use[index]
        heapq.heappush(furthest, (-next_use[index], name))
    return misses


def trained_prefetcher(trace: Sequence[TraceRequest], lora_bytes: int) -> Prefetcher:
    """Run the router's prefetcher over the trace."""
    prefetcher = Prefetcher()
    for request in trace:
        blobs = [Blob(name, "", lora_bytes) for name, _ in request.loras]
        prefetcher.record_request(request.tenant, blobs, request.arrival_s)
    return prefetcher


def tier_misses(uses: Sequence[Use], slots: int) -> int:
    """Misses of the platform's tier."""
    return run_tier(uses, slots).misses


@dataclass(frozen=True, slots=True)
class TierResult:
    """A tier's result: policy changes, and the share of uses under recency (LRU)."""

    misses: int
    changes: int
    recency_share: float


def run_tier(uses: Sequence[Use], slots: int) -> TierResult:
    """Run the platform's tier under the stream's clock."""
    now_s = 0.0
    tier: DeviceTier[None] = DeviceTier(slots, clock=lambda: now_s)
    misses = 0
    for now_s, tenant, name in uses:  # noqa: B007  (the clock reads it)
        lease, loaded = tier.admit(name, 1, lambda: None, tenant)
        lease.release()
        misses += loaded
    tier.check_integrity()
    uses_by_policy = tier.policy_selector.uses_by_policy
    return TierResult(
        misses,
        tier.policy_selector.changes,
        uses_by_policy[EvictionPolicy.RECENCY] / max(1, sum(uses_by_policy.values())),
    )


def visits_misses(uses: Sequence[Use], slots: int) -> int:
    """Misses of the visits policy."""
    history = AccessHistory(SESSION * slots)
    simulated = SimulatedTier(slots, SESSION * slots, history.worth)
    return sum(
        simulated.used(name, 1, history.used(name, 1, tenant, at_s)) for at_s, tenant, name in uses
    )
