"""A cache that computes values of public routes once a second at most."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")
MAX_AGE_S = 1.0


class RecentCache:
    """Values by name; concurrent callers share a call. For one event loop."""

    def __init__(self) -> None:
        self._calls: dict[str, tuple[float, asyncio.Future[Any]]] = {}

    async def get(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the value or error of ``ask``, at most MAX_AGE_S old."""
        now = asyncio.get_running_loop().time()
        called_s, value = self._calls.get(what, (0.0, None))
        if value is None or (value.done() and now - called_s > MAX_AGE_S):
            value = asyncio.ensure_future(ask())
            value.add_done_callback(_mark_retrieved)
            self._calls[what] = now, value
        result: T = await asyncio.shield(value)
        return result


def _mark_retrieved(value: asyncio.Future[Any]) -> None:
    """Else asyncio logs it if no caller remains."""
    if not value.cancelled():
        value.exception()
