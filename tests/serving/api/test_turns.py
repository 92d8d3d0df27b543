"""One search of a tenant at a time; other tenants are not waited for."""

from __future__ import annotations

import asyncio

from serving.api.turns import Turns


async def test_a_tenant_waits_for_itself_alone() -> None:
    turns, order = Turns(), []
    go = asyncio.Event()

    async def search(tenant: str, name: str) -> None:
        async with turns.of(tenant):
            order.append(name)
            if name == "a1":
                await go.wait()

    first = asyncio.create_task(search("a", "a1"))
    await asyncio.sleep(0)
    gone = asyncio.create_task(search("a", "gone"))
    second = asyncio.create_task(search("a", "a2"))
    await search("b", "b1")
    assert order == ["a1", "b1"]
    gone.cancel()
    go.set()
    await asyncio.gather(first, second)
    assert order == ["a1", "b1", "a2"]
    assert turns._of == {}
