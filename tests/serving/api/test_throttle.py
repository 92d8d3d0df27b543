"""Refusals and keyless requests are throttled; those that count against a plan are not."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from assets.principal import Principal
from serving.api.throttle import (
    ANSWERS_PER_S,
    BURST,
    MAX_DELAY_S,
    ResponseThrottle,
    ThrottleMiddleware,
)


def test_a_burst_is_not_delayed_and_the_rest_is() -> None:
    now = 100.0
    pace = ResponseThrottle(lambda: now)
    assert [pace.delay_s("a") for _ in range(BURST)] == pytest.approx([0.0] * BURST, abs=1e-6)
    assert pace.delay_s("a") == pytest.approx(1 / ANSWERS_PER_S)
    assert pace.delay_s("a") == pytest.approx(2 / ANSWERS_PER_S)
    assert pace.delay_s("b") == 0.0
    now += 1.0
    assert pace.delay_s("a") == 0.0


def test_delays_are_bounded() -> None:
    now = 100.0
    pace = ResponseThrottle(lambda: now)
    delays = [pace.delay_s("a") for _ in range(BURST + 10 * int(MAX_DELAY_S * ANSWERS_PER_S))]
    assert max(delays) == MAX_DELAY_S
    now += MAX_DELAY_S
    assert pace.delay_s("a") <= 1 / ANSWERS_PER_S + 1e-6


@pytest.mark.parametrize(
    ("path", "status", "principal", "client"),
    [
        ("/generate", 401, None, "address 10.0.0.1"),
        ("/metrics", 200, None, "address 10.0.0.1 /metrics"),
        ("/objects/blobs/x", 200, None, None),
        ("/v1/jobs/x", 200, None, None),
        ("/objects/blobs/x", 403, None, "address 10.0.0.1"),
        ("/v1/assets", 200, Principal("t1", "me"), None),
        ("/generate", 422, Principal("t1", "me"), "tenant t1"),
        ("/generate", 429, Principal("t1", "me"), None),
    ],
)
def test_which_client_is_delayed(
    path: str, status: int, principal: Principal | None, client: str | None
) -> None:
    delayed: list[tuple[str, float]] = []

    class RecordingPace(ResponseThrottle):
        def delay_s(self, client: str, cost: float = 1.0) -> float:
            delayed.append((client, cost))
            return 0.0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if principal is not None:
            scope["state"]["principal"] = principal
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    throttle = ThrottleMiddleware(app, RecordingPace())
    scope: dict[str, Any] = {"type": "http", "path": path, "state": {}, "client": ("10.0.0.1", 5)}
    scope["headers"] = [(b"content-length", b"131072")]
    asyncio.run(throttle(scope, receive, send))
    assert delayed == ([(client, 3.0)] if client else [])
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
