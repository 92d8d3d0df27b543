"""A generation as a stream of encoded events: both ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable

from msgspec import structs

from serving.errors import GenerationFailed
from serving.generation.contract import GenerationResult, ReplicaReport
from serving.generation.events import Done, ImageReady, decode, encode
from serving.generation.failure import Failure


async def sent(
    work: Awaitable[tuple[GenerationResult, ReplicaReport | None]],
) -> AsyncIterator[bytes]:
    """Yield the events of ``work``'s outcome, one message per image. Other errors propagate."""
    try:
        result, report = await work
    except Exception as error:
        failure = Failure.of(error)
        if failure is None:
            raise
        yield encode(failure)
        return
    for index, image in enumerate(result.images):
        yield encode(ImageReady(index, image))
    yield encode(Done(structs.replace(result, images=()), report))


async def received(
    events: AsyncIterator[bytes],
) -> tuple[GenerationResult, ReplicaReport | None]:
    """Return the result of :func:`sent`'s events, or raise its error."""
    images: dict[int, bytes] = {}
    async for data in events:
        event = decode(data)
        if isinstance(event, ImageReady):
            images[event.index] = event.data
        elif isinstance(event, Failure):
            raise event.error()
        elif isinstance(event, Done):
            ordered = tuple(images[index] for index in sorted(images))
            return structs.replace(event.result, images=ordered), event.report
    raise GenerationFailed("the stream ended without a result")
