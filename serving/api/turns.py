"""One question at a time of each tenant, where many rows are looked at.

Each is worked on in a thread, and the threads of a process share one interpreter: a tenant that
searches on fifty connections would have fifty shares of it. What is beyond waits for its turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """On one event loop; remembers nothing of tenants that ask for nothing."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, tenant_id: str) -> AsyncIterator[None]:
        turn, asking = self._of.get(tenant_id, (asyncio.Lock(), 0))
        self._of[tenant_id] = turn, asking + 1
        try:
            async with turn:
                yield
        finally:
            _, asking = self._of.pop(tenant_id)
            if asking > 1:
                self._of[tenant_id] = turn, asking - 1
