"""A bounded queue: when it is full, it drops its items instead of blocking the writer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from enum import Enum, auto
from typing import Generic, TypeVar

T = TypeVar("T")


class Gap(Enum):
    """Returned between items: items were lost, or none came for ``idle_s``."""

    LOST = auto()
    IDLE = auto()


class Mailbox(Generic[T]):
    """For one reader and one event loop. A put to a full mailbox drops every item; the reader then
    gets LOST."""

    def __init__(self, size: int, idle_s: float | None = None) -> None:
        self._items: deque[T] = deque()
        self._size = size
        self._idle_s = idle_s
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
        """Drop everything; the reader is told next."""
        self._items.clear()
        self._has_lost = True
        self._changed.set()

    def close(self) -> None:
        """The reader ends after the items that it already has."""
        self._is_closed = True
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[T | Gap]:
        """Yield the items, and the gaps between them."""
        while True:
            if self._has_lost:
                self._has_lost = False
                yield Gap.LOST
            elif self._items:
                yield self._items.popleft()
            elif self._is_closed:
                return
            else:
                self._changed.clear()
                try:
                    async with asyncio.timeout(self._idle_s):
                        await self._changed.wait()
                except TimeoutError:
                    yield Gap.IDLE
