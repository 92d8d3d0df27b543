"""Throttling of responses that count against no plan.

Refusals and requests without a key are not limited by a plan; sent in a loop over a few
connections, they would take a CPU core from the engines. Once a client has had too many, its
responses are delayed: after the work, before the response. A client is a tenant, or an address if
no key was accepted; successful requests without a key are counted per address and path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from cachetools import LRUCache
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Responses per second and client in this process, and the size of a burst.
ANSWERS_PER_S = 50.0
BURST = 50
#: This many bytes of a body count as one more response, up to _MAX_COST in all.
_BODY_BYTES = 64 << 10
_MAX_COST = 10.0
#: The longest delay: a delayed response occupies a connection.
MAX_DELAY_S = 5.0
_MAX_CLIENTS = 10_000
_RATE_LIMITED = 429
#: Paths whose URL is a secret itself: it contains a signature or an unguessable id.
_SECRET_URLS = ("/objects/", "/v1/jobs/", "/files/")


class ResponseThrottle:
    """The time at which each client's next response is due."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._due_s: LRUCache[str, float] = LRUCache(_MAX_CLIENTS)

    def delay_s(self, client: str, cost: float = 1.0) -> float:
        """Count a response to ``client``; return its delay in seconds.

        ``cost`` is in short responses.
        """
        now = self._now()
        earliest = now - BURST / ANSWERS_PER_S
        due = max(self._due_s.get(client, 0.0), earliest) + cost / ANSWERS_PER_S
        self._due_s[client] = min(due, now + MAX_DELAY_S)
        return min(max(0.0, due - now), MAX_DELAY_S)


#: The shared instance of this process.
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
    """Return the client for an address without an accepted key."""
    return f"address {host}"


def _uncounted_client(scope: Scope, status: int) -> str | None:
    """Return the client of a response that counts against no plan; None for other responses."""
    principal = scope.get("state", {}).get("principal")
    if principal is not None:
        is_refused = status >= 400 and status != _RATE_LIMITED  # a 429 has a Retry-After
        return f"tenant {principal.queue_id}" if is_refused else None
    client = at_address(scope["client"][0] if scope.get("client") else "")
    if status >= 400:
        return client
    return None if scope["path"].startswith(_SECRET_URLS) else f"{client} {scope['path'][:80]}"
