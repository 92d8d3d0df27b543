"""Events and messages of other versions: unknown fields and kinds are skipped, not misread."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from assets.content import Blob
from assets.recipe import InversionUse, LoraUse, Recipe
from assets.selection import AssetSelection
from orchestrator.asset_fetch import AssetFetch
from serving.generation.contract import (
    Attempt,
    GenerationParams,
    GenerationRequest,
    GenerationResult,
    GenerationTask,
    Inquiry,
    ReplicaReport,
    Swap,
    Timings,
)
from serving.generation.events import (
    Assigned,
    Done,
    Event,
    Fetching,
    ImageReady,
    Preview,
    Queued,
    Starting,
    Step,
    decode,
    encode,
)
from serving.generation.failure import Failure
from serving.generation.following import Envelope, Follow, Standing
from serving.generation.submission import Submission

BLOB = Blob("key", "sha", 10)
RECIPE = Recipe(BLOB, BLOB, BLOB, BLOB, (LoraUse(BLOB, 0.5, 0.1),), (InversionUse(BLOB, "word"),))
PARAMS = GenerationParams(prompt="a star", negative_prompt="", steps=4, encoding="png")
TASK = GenerationTask(id="r", recipe=RECIPE, params=PARAMS, seeds=(7, 8), width=64, height=64)
RESULT = GenerationResult(
    (), "a-0", (AssetFetch("key", "disk", 10, 0.1),), Swap(1, 2, 3, 4), Timings(queue_ms=1.0)
)
REPORT = ReplicaReport("a-0", "node", 1, {"gpu": frozenset({"key"})}, frozenset({"key"}))
EVENTS: tuple[Event, ...] = (
    Queued(3, 1.5),
    Starting("default", "model", {"node": 4.0}),
    Assigned("a-0", 2),
    Fetching(3),
    Step(2, 4),
    Preview(0, 2, b"\xff\xd8"),
    ImageReady(1, b"\x89PNG"),
    Done(RESULT, REPORT),
    Failure(("Refused", "ServingError"), "full", (429, "full", 2.0)),
)
MESSAGES = (
    TASK,
    GenerationRequest(params=PARAMS, seeds=(1,), selection=AssetSelection(loras={"a": 1.0})),
    Submission(TASK, "acme", 1.0, 30.0, frozenset({"key"})),
    RESULT,
    REPORT,
    Attempt(TASK, "steps"),
    Inquiry("r", "previews"),
    Follow("stream", "job", "states", "e-1"),
    Standing("e", 3, ((2, b"event"),)),
    Envelope("job", 3, b"event"),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_survive_encoding(event: Event) -> None:
    assert decode(encode(event)) == event


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_survive_encoding_and_ignore_new_fields(message: Any) -> None:
    data = msgspec.msgpack.encode(message)
    assert msgspec.msgpack.decode(data, type=type(message)) == message
    newer = _with_new_fields(msgspec.msgpack.decode(data))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(newer), type=type(message)) == message


def test_new_fields_and_kinds_of_events_are_skipped() -> None:
    for event in EVENTS:
        newer = _with_new_fields(msgspec.msgpack.decode(encode(event)))
        assert decode(msgspec.msgpack.encode(newer)) == event
    assert decode(msgspec.msgpack.encode({"type": "juggling", "balls": 5})) is None
    with pytest.raises(msgspec.DecodeError):
        decode(msgspec.msgpack.encode({"type": "step", "step": "many", "steps": 4}))


def test_a_missing_new_field_takes_its_default() -> None:
    older = msgspec.msgpack.decode(encode(Assigned("a-0", 2)))
    del older["attempt"]
    assert decode(msgspec.msgpack.encode(older)) == Assigned("a-0", 1)


#: Mappings of names to values, where a new key is an entry and not a field.
_OPEN = {
    "nodes",
    "pins",
    "loras",
    "inversions",
    "lora_text_weights",
    "matched",
    "fallbacks",
    "spent_s",
}
_OPEN |= {"resident", "eviction_policies", "attributes"}


def _with_new_fields(value: Any, name: str = "") -> Any:
    """Every object with two fields more, of which the first is in front."""
    if isinstance(value, list):
        return [_with_new_fields(each) for each in value]
    if not isinstance(value, dict) or name in _OPEN:
        return value
    known = {key: _with_new_fields(each, key) for key, each in value.items()}
    return {"a_new": [1], **known, "z_new": {"deep": True}}
