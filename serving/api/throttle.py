"""Delays responses that count against no plan: refusals, and requests without a key.

In a loop, they would take a CPU core from the engines. They count by tenant, or by address without
an accepted key; successes without a key by address and path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from cachetools import LRUCache
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Per client and process.
ANSWERS_PER_S = 50.0
BURST = 50
#: Body bytes per additional response, up to _MAX_COST.
_BODY_BYTES = 64 << 10
_MAX_COST = 10.0
#: A delayed response occupies a connection.
MAX_DELAY_S = 5.0
_MAX_CLIENTS = 10_000
_RATE_LIMITED = 429
#: The URL itself is secret: it holds a signature or an unguessable id.
_SECRET_URLS = ("/objects/", "/v1/jobs/", "/files/")


class ResponseThrottle:
    """The due time of each client's next response."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._due_s: LRUCache[str, float] = LRUCache(_MAX_CLIENTS)

    def delay_s(self, client: str, cost: float = 1.0) -> float:
        """Count a response of ``cost`` short ones; return its delay."""
        now = self._now()
        earliest = now - BURST / ANSWERS_PER_S
        due = max(self._due_s.get(client, 0.0), earliest) + cost / ANSWERS_PER_S
        self._due_s[client] = min(due, now + MAX_DELAY_S)
        return min(max(0.0, due - now), MAX_DELAY_S)


THROTTLE = ResponseThrottle()


class ThrottleMiddleware:
    """Middleware around a whole application that delays responses."""

    def __init__(self, app: ASGIApp, throttle: ResponseThrottle = THROTTLE) -> None:
        self._app = app
        self._throttle = throttle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_delayed(message: Message) -> None:
            if message["type"] == "http.response.start":
                client = _uncounted_client(scope, message["status"])
                if client is not None:
                    await asyncio.sleep(self._throttle.delay_s(client, _cost(scope)))
            await send(message)

        await self._app(scope, receive, send_delayed)


def _cost(scope: Scope) -> float:
    declared = int(Headers(scope=scope).get("content-length", 0))
    return min(_MAX_COST, 1 + declared / _BODY_BYTES)


def at_address(host: str) -> str:
    """Return the client for an address."""
    return f"address {host}"


def _uncounted_client(scope: Scope, status: int) -> str | None:
    principal = scope.get("state", {}).get("principal")
    if principal is not None:
        is_refused = status >= 400 and status != _RATE_LIMITED  # a 429 has a Retry-After
        return f"tenant {principal.queue_id}" if is_refused else None
    client = at_address(scope["client"][0] if scope.get("client") else "")
    if status >= 400:
        return client
    return None if scope["path"].startswith(_SECRET_URLS) else f"{client} {scope['path'][:80]}"
