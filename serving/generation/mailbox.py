"""A bounded queue whose writer never waits for its reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """For one reader of one event loop. A full mailbox is emptied, and its reader told so."""

    def __init__(self, size: int) -> None:
        self._items: deque[T] = deque()
        self._size = size
        self._has_lost = False
        self._is_closed = False
        self._changed = asyncio.Event()

    def put(self, item: T) -> None:
        if len(self._items) == self._size:
            self.lose()
        else:
            self._items.append(item)
            self._changed.set()

    def lose(self) -> None:
        """Drop everything; the reader gets None next."""
        self._items.clear()
        self._has_lost = True
        self._changed.set()

    def close(self) -> None:
        """The reader ends after the items that it already has."""
        self._is_closed = True
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[T | None]:
        """Yield each item, or None where items were lost."""
        while True:
            if self._has_lost:
                self._has_lost = False
                yield None
            elif self._items:
                yield self._items.popleft()
            elif self._is_closed:
                return
            else:
                self._changed.clear()
                await self._changed.wait()
