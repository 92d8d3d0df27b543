"""A lock per tenant for requests that read many rows.

Threads share one interpreter: fifty connections would get fifty shares.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class TenantLocks:
    """The locks of tenants with current requests. For one event loop."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, tenant_id: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(tenant_id, (asyncio.Lock(), 0))
        self._locks[tenant_id] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks.pop(tenant_id)
            if users > 1:
                self._locks[tenant_id] = lock, users - 1
