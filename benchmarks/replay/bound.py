"""Lower bounds for any policy."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from benchmarks.document import Document
from benchmarks.replay.caches import belady_misses
from benchmarks.replay.figures import quantile
from benchmarks.replay.replica import Hardware
from benchmarks.replay.trace import TraceRequest

CLAIRVOYANT = "clairvoyant bound"


def bound(trace: Sequence[TraceRequest], hardware: Hardware) -> Document:
    """Return a result row of bounds.

    Misses: Belady's optimum over all slots as one cache, in order of arrival (reordering may have
    fewer). Latencies: one FIFO queue without loading.
    """
    uses = [(r.arrival_s, r.tenant, r.checkpoint) for r in trace]
    misses = belady_misses(uses, hardware.replicas * hardware.checkpoint_slots)
    free_at_s = [0.0] * hardware.replicas
    latencies = []
    for r in trace:
        start_s = max(r.arrival_s, free_at_s[0])
        done_s = start_s + hardware.swap_s + r.cost * hardware.picture_s
        heapq.heapreplace(free_at_s, done_s)
        latencies.append(done_s - r.arrival_s)
    latencies.sort()
    return {
        "policy": CLAIRVOYANT,
        "requests": len(trace),
        "checkpoint_misses": misses / len(trace),
        "p50_s": quantile(latencies, 0.5),
        "p95_s": quantile(latencies, 0.95),
        "p99_s": quantile(latencies, 0.99),
    }
