"""Work that ends with its client's connection."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import TypeVar

from fastapi import Request

from serving.errors import Cancelled

T = TypeVar("T")


async def run_while_connected(request: Request, work: Coroutine[None, None, T]) -> T:
    """Return the result of ``work``; cancel it if the client disconnects.

    Raises:
        Cancelled: the client disconnected.
    """
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client disconnected")
        return task.result()
    finally:
        for other in (task, disconnected):
            if not other.done():
                other.cancel()
                with suppress(asyncio.CancelledError):
                    await other


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
