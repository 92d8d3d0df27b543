"""A generation as a stream of events, from one end to the other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from msgspec import structs

from serving.errors import GenerationFailed, NotFinite
from serving.generation.contract import GenerationResult, ReplicaReport
from serving.generation.exchange import received, sent
from tests.support.messages import REPORT, RESULT

IMAGES = (b"first", b"second")


async def outcome(
    error: Exception | None = None,
) -> tuple[GenerationResult, ReplicaReport | None]:
    if error is not None:
        raise error
    return structs.replace(RESULT, images=IMAGES), REPORT


async def test_a_result_arrives_whole_with_one_message_an_image() -> None:
    messages = [message async for message in sent(lambda _: outcome())]
    assert len(messages) == len(IMAGES)
    assert all(sum(image in message for image in IMAGES) <= 1 for message in messages)
    assert await received(sent(lambda _: outcome())) == await outcome()


async def test_the_platforms_errors_arrive_and_others_propagate() -> None:
    with pytest.raises(NotFinite) as failed:
        await received(sent(lambda _: outcome(NotFinite("{assets} is wild", ("key",)))))
    assert failed.value.blamed == ("key",)
    with pytest.raises(ValueError, match="a bug"):
        await received(sent(lambda _: outcome(ValueError("a bug"))))


async def test_events_of_a_newer_version_are_skipped() -> None:
    async def newer() -> AsyncIterator[bytes]:
        async for message in sent(lambda _: outcome()):
            yield msgspec.msgpack.encode({"type": "juggling"})
            yield message

    assert await received(newer()) == await outcome()


async def test_a_stream_without_a_result_is_an_error() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    with pytest.raises(GenerationFailed):
        await received(nothing())
