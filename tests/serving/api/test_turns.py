"""A tenant's searches run singly, whatever other tenants do."""

from __future__ import annotations

import asyncio

from serving.api.turns import TenantLocks


async def test_a_tenant_waits_only_for_its_own_requests() -> None:
    turns, order = TenantLocks(), []
    release = asyncio.Event()

    async def search(tenant: str, name: str) -> None:
        async with turns.of(tenant):
            order.append(name)
            if name == "a1":
                await release.wait()

    first = asyncio.create_task(search("a", "a1"))
    await asyncio.sleep(0)
    cancelled = asyncio.create_task(search("a", "cancelled"))
    second = asyncio.create_task(search("a", "a2"))
    await search("b", "b1")
    assert order == ["a1", "b1"]
    cancelled.cancel()
    release.set()
    await asyncio.gather(first, second)
    assert order == ["a1", "b1", "a2"]
    assert turns._locks == {}
