"""A generation as a stream of encoded events: both ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress

from msgspec import structs

from serving.errors import GenerationFailed
from serving.generation.contract import GenerationResult, ReplicaReport
from serving.generation.events import Done, ImageReady, decode, encode, kind_of
from serving.generation.failure import Failure
from serving.generation.mailbox import Gap, Mailbox

#: What a slow reader may fall behind.
_EVENTS = 1024
_OUTCOME = ("done", "failure")
ResultAndReport = tuple[GenerationResult, ReplicaReport | None]


async def sent(
    start: Callable[[Callable[[bytes], None]], Coroutine[None, None, ResultAndReport]],
) -> AsyncIterator[bytes]:
    """Yield what the coroutine of ``start`` emits, then its outcome, one message per image.

    ``start`` gets the function that emits an encoded event. Errors that are not the platform's
    propagate. Closing the iterator cancels the coroutine and waits for it.
    """
    events: Mailbox[bytes] = Mailbox(_EVENTS)
    work = asyncio.ensure_future(start(events.put))
    work.add_done_callback(lambda _: events.close())
    try:
        async for event in events:
            if not isinstance(event, Gap):
                yield event
        try:
            result, report = await work
        except Exception as error:
            failure = Failure.of(error)
            if failure is None:
                raise
            yield encode(failure)
            return
        for index, image in enumerate(result.images[:-1]):
            yield encode(ImageReady(index, image))
        yield encode(Done(structs.replace(result, images=result.images[-1:]), report))
    finally:
        if not work.done():
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work


def _ignore(_: bytes) -> None:
    """Nobody follows."""


async def received(
    events: AsyncIterator[bytes], forward: Callable[[bytes], None] = _ignore
) -> ResultAndReport:
    """Return the result of :func:`sent`'s events, or raise its error; ``forward`` the others."""
    images: dict[int, bytes] = {}
    async for data in events:
        kind = kind_of(data)
        event = decode(data) if kind in _OUTCOME or kind == "image" else None
        if isinstance(event, ImageReady) and event.data:
            images[event.index] = event.data
        elif isinstance(event, Failure):
            raise event.error()
        elif isinstance(event, Done):
            ordered = (*(images[index] for index in sorted(images)), *event.result.images)
            return structs.replace(event.result, images=ordered), event.report
        else:
            forward(data)
    raise GenerationFailed("the stream ended without a result")
