"""A value that anybody may ask for, asked for at most once a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")
MAX_AGE_S = 1.0


class Recent:
    """On one event loop. Callers that come together wait for one question."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[float, asyncio.Future[Any]]] = {}

    async def get(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        """The value of ``ask``, or its error, at most MAX_AGE_S old."""
        now = asyncio.get_running_loop().time()
        asked_s, value = self._asked.get(what, (0.0, None))
        if value is None or (value.done() and now - asked_s > MAX_AGE_S):
            value = asyncio.ensure_future(ask())
            value.add_done_callback(_seen)
            self._asked[what] = now, value
        found: T = await asyncio.shield(value)
        return found


def _seen(value: asyncio.Future[Any]) -> None:
    """Callers may have gone away before its error came."""
    if not value.cancelled():
        value.exception()
