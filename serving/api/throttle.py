"""Answers that spend nothing of a plan come at a bounded rate.

Refusals, and what everybody may ask without a key, are not counted by any plan; sent in a loop
over a few connections, such requests take a processor from the engines. Once a client has had too
many of them, the next wait: after the work, before the answer. A client is a tenant, or an address
where no key was accepted; probes of an address wait for those of the same path only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from cachetools import LRUCache
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Such answers a second, for each client of this process, and how many may come at once.
ANSWERS_PER_S = 50.0
BURST = 50
#: So many bytes of a body count as one answer more, up to _MOST_COST.
_BODY_BYTES = 64 << 10
_MOST_COST = 10.0
#: No answer waits for longer: a connection that waits takes one of the places that there are.
MAX_DELAY_S = 5.0
_MAX_CLIENTS = 10_000
_RATE_LIMITED = 429
#: Paths whose URL is a key itself: a signature, or an id that nobody guesses.
_SECRET_URLS = ("/objects/", "/v1/jobs/", "/files/")


class ReplyPace:
    """When each client's next answer is due."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._due_s: LRUCache[str, float] = LRUCache(_MAX_CLIENTS)

    def delay_s(self, client: str, cost: float = 1.0) -> float:
        """Count one more answer to ``client``, which costs as much as ``cost`` short ones; return
        how long it has to wait."""
        now = self._now()
        earliest = now - BURST / ANSWERS_PER_S
        due = max(self._due_s.get(client, 0.0), earliest) + cost / ANSWERS_PER_S
        self._due_s[client] = min(due, now + MAX_DELAY_S)
        return min(max(0.0, due - now), MAX_DELAY_S)


#: Of this process.
PACE = ReplyPace()


class Throttle:
    """Around an application, between it and the server."""

    def __init__(self, app: ASGIApp, pace: ReplyPace = PACE) -> None:
        self._app = app
        self._pace = pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_in_time(message: Message) -> None:
            if message["type"] == "http.response.start":
                client = _unpaid(scope, message["status"])
                if client is not None:
                    await asyncio.sleep(self._pace.delay_s(client, _cost(scope)))
            await send(message)

        await self._app(scope, receive, send_in_time)


def _cost(scope: Scope) -> float:
    declared = int(Headers(scope=scope).get("content-length", 0))
    return min(_MOST_COST, 1 + declared / _BODY_BYTES)


def at_address(host: str) -> str:
    """The client at an address where no key was accepted."""
    return f"address {host}"


def _unpaid(scope: Scope, status: int) -> str | None:
    """The client of an answer that spent nothing of a plan."""
    principal = scope.get("state", {}).get("principal")
    if principal is not None:
        is_refused = status >= 400 and status != _RATE_LIMITED  # which says itself when to come
        return f"tenant {principal.queue_id}" if is_refused else None
    client = at_address(scope["client"][0] if scope.get("client") else "")
    if status >= 400:
        return client
    return None if scope["path"].startswith(_SECRET_URLS) else f"{client} {scope['path'][:80]}"
