"""The Prometheus metrics of one pool.

The dispatcher counts and gateways collect, so all show the same values. Labels have few values:
never a tenant, an asset or a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from serving.generation.contract import GenerationResult, GenerationTask, Phase
from serving.generation.status import DispatcherStatus, PoolEventKind, PoolStatus

Outcome = Literal["drawn", "refused", "late", "failed", "cancelled"]

_QUEUE_S = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0)


class PoolMetrics:
    """Prometheus expects that counters restart at zero."""

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "ao_requests", "Finished requests by outcome.", ("pool", "plan", "outcome"),
            registry=registry,
        )  # fmt: skip
        self._images = Counter(
            "ao_pictures", "Generated images.", ("pool", "plan"), registry=registry
        )
        self._work = Counter(
            "ao_work", "Generated evaluations × pixels × images.", ("pool",), registry=registry
        )
        self._queue_s = Histogram(
            "ao_queue_seconds", "Time from a request's arrival to its start.", ("pool", "plan"),
            buckets=_QUEUE_S, registry=registry,
        )  # fmt: skip
        self._engine_s = Summary(
            "ao_engine_seconds", "Engine time by phase.", ("pool", "phase"),
            registry=registry,
        )  # fmt: skip
        self._found = Counter(
            "ao_assets_found", "Assets used by generations, by the tier they were found on.",
            ("pool", "tier"), registry=registry,
        )  # fmt: skip
        self._moved = Counter(
            "ao_asset_moved_bytes", "Bytes moved for generations, by source tier.",
            ("pool", "tier"), registry=registry,
        )  # fmt: skip
        self._fallbacks = Counter(
            "ao_unet_fallbacks", "Calls of UNet or VAE at a shape that was not warmed up.",
            ("pool", "shape"), registry=registry,
        )  # fmt: skip
        self._retries = Counter(
            "ao_retries", "Attempts whose replica was lost.", ("pool",), registry=registry
        )
        self._events = Counter(
            "ao_pool_events", "Replicas ordered, ready, released and failed.", ("pool", "what"),
            registry=registry,
        )  # fmt: skip
        self._start_s = Summary(
            "ao_start_seconds", "Duration of a replica's start by phase.", ("pool", "phase"),
            registry=registry,
        )  # fmt: skip

    def ended(self, plan: str, outcome: Outcome) -> None:
        self._requests.labels(self.pool, plan, outcome).inc()

    def generated(self, plan: str, request: GenerationTask, result: GenerationResult) -> None:
        timings = result.timings
        self._images.labels(self.pool, plan).inc(len(result.images))
        self._work.labels(self.pool).inc(request.work)
        self._queue_s.labels(self.pool, plan).observe(timings.queue_ms / 1000)
        for phase in ("fetch", "swap", "encode_prompt", "denoise", "decode", "encode_image"):
            spent_ms = getattr(timings, f"{phase}_ms")
            self._engine_s.labels(self.pool, phase).observe(spent_ms / 1000)
        for fetch in result.fetches:
            self._found.labels(self.pool, fetch.tier).inc()
            self._moved.labels(self.pool, fetch.tier).inc(fetch.bytes_moved)
        for shape, steps in result.fallbacks.items():
            self._fallbacks.labels(self.pool, shape).inc(steps)

    def retried(self) -> None:
        self._retries.labels(self.pool).inc()

    def event(self, kind: PoolEventKind) -> None:
        self._events.labels(self.pool, kind).inc()

    def started(self, phases_s: Mapping[Phase, float]) -> None:
        for phase, spent_s in phases_s.items():
            self._start_s.labels(self.pool, phase).observe(spent_s)

    def families(self, dispatcher: DispatcherStatus, pool: PoolStatus) -> list[Metric]:
        """Return the counters, and gauges from the statuses."""
        name, limit = self.pool, pool.pool
        started = [replica.is_up for replica in pool.state.replicas] if pool.state else []
        replicas = [((name, "up"), started.count(True)), ((name, "starting"), started.count(False))]
        resident = [
            ((name, replica.id, tier), count)
            for replica in dispatcher.replicas
            for tier, count in replica.resident.items()
        ]
        policies = [
            ((name, replica.id, tier, law), 1)
            for replica in dispatcher.replicas
            for tier, law in replica.eviction.items()
        ]
        running = sum(replica.running for replica in dispatcher.replicas)
        limits = [
            ((name, "queue_size"), limit.queue_size),
            ((name, "min"), limit.min),
            ((name, "max"), limit.max),
            ((name, "idle_s"), limit.idle_s),
        ]
        return [
            *self._registry.collect(),
            _gauge("ao_waiting_requests", "Queued requests.", (), name, dispatcher.waiting),
            _gauge("ao_held_requests", "Held by their plan's limit.", (), name, dispatcher.held),
            _gauge("ao_running_requests", "Requests on replicas.", (), name, running),
            _gauges("ao_replicas", "Replicas by state.", ("state",), replicas),
            _gauges("ao_pool_limit", "Configured limits.", ("limit",), limits),
            _gauges("ao_resident_assets", "Assets on each tier.", ("replica", "tier"), resident),
            _gauges("ao_eviction_law", "Active policy.", ("replica", "tier", "law"), policies),
            _gauge("ao_quarantined", "Quarantined assets.", (), name, dispatcher.quarantined),
            _gauge(
                "ao_prefetch_precision", "Share of recent prefetches that were used.", (), name,
                dispatcher.prefetch_precision,
            ),
            _gauge(
                "ao_speed_work_per_second", "Measured speed of generation.", (), name,
                dispatcher.work_per_s,
            ),
        ]  # fmt: skip


def _gauge(name: str, text: str, labels: tuple[str, ...], pool: str, value: float) -> Metric:
    return _gauges(name, text, labels, [((pool,), value)])


def _gauges(
    name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("pool", *labels))
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family
