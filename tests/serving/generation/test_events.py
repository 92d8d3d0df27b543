"""Events and messages of other versions: unknown fields and kinds are skipped, not misread."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from serving.generation.events import Assigned, Event, decode, encode
from tests.support.messages import EVENTS, MESSAGES, with_new_fields


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_survive_encoding(event: Event) -> None:
    assert decode(encode(event)) == event


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_survive_encoding_and_ignore_new_fields(message: Any) -> None:
    data = msgspec.msgpack.encode(message)
    assert msgspec.msgpack.decode(data, type=type(message)) == message
    newer = with_new_fields(msgspec.msgpack.decode(data))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(newer), type=type(message)) == message


def test_new_fields_and_kinds_of_events_are_skipped() -> None:
    for event in EVENTS:
        newer = with_new_fields(msgspec.msgpack.decode(encode(event)))
        assert decode(msgspec.msgpack.encode(newer)) == event
    assert decode(msgspec.msgpack.encode({"type": "juggling", "balls": 5})) is None
    with pytest.raises(msgspec.DecodeError):
        decode(msgspec.msgpack.encode({"type": "step", "step": "many", "steps": 4}))


def test_a_missing_new_field_takes_its_default() -> None:
    older = msgspec.msgpack.decode(encode(Assigned("a-0", 2)))
    del older["attempt"]
    assert decode(msgspec.msgpack.encode(older)) == Assigned("a-0", 1)
