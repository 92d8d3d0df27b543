"""Prometheus metrics of HTTP responses, summed over this machine's gateways.

They share ``PROMETHEUS_MULTIPROC_DIR``; unset, each exports its own.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, MutableMapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)

_OWN = CollectorRegistry()
#: Frequent; logged at debug level.
_PROBES = ("/healthz", "/health", "/healthcheck", "/readyz", "/metrics", "/v1/status")
_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)
REQUESTS = Counter(
    "ao_http_requests", "Responses, by route and status.", ("method", "route", "status"),
    registry=_OWN,
)  # fmt: skip
SECONDS = Histogram(
    "ao_http_seconds", "Seconds until a response was sent.", ("method", "route"), buckets=_SECONDS,
    registry=_OWN,
)  # fmt: skip


class MetricsMiddleware:
    """Middleware that counts, times and logs responses.

    Paths without a route share a label, so scans create none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        status = "none"
        is_counted = False

        def count() -> None:
            nonlocal is_counted
            if is_counted:
                return
            is_counted = True
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if route != "none" else "none"
            spent_s = time.perf_counter() - started_s
            REQUESTS.labels(method, route, status).inc()
            SECONDS.labels(method, route).observe(spent_s)
            level = logging.DEBUG if route in _PROBES else logging.INFO
            log.log(level, "%s %s: %s in %.0f ms", method, route, status, spent_s * 1000)

        async def send_and_watch(message: MutableMapping[str, object]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                count()  # not after the response's background tasks

        try:
            await self._app(scope, receive, send_and_watch)
        finally:
            count()


class _StaticCollector(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def exposition(families: Sequence[Metric]) -> bytes:
    """Return the HTTP metrics and ``families`` as Prometheus text."""
    registry = CollectorRegistry()
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        own = b""
    else:
        own = generate_latest(_OWN)
    registry.register(_StaticCollector(families))
    return own + generate_latest(registry)
