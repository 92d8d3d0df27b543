"""A sample of every message that crosses processes, and messages of a newer version."""

from __future__ import annotations

from typing import Any

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
)
from serving.generation.failure import Failure
from serving.generation.following import Envelope, Follow, FollowReply
from serving.generation.submission import Cancellation, Submission
from serving.jobs.failed import JobError
from serving.jobs.results import StoredResult

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
    FollowReply("e", 3, ((2, b"event"),)),
    Envelope("job", 3, b"event"),
    Cancellation("job", "job@1"),
    StoredResult(
        request_id="r",
        result=RESULT,
        images=("pictures/a.png",),
        seeds=(7,),
        width=64,
        height=64,
        was_scaled=False,
        names={"key": "name"},
        is_published=True,
    ),
    JobError(failure=Failure(("Cancelled", "ServingError"), "gone", ("gone",)), is_final=True),
)

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
    "names",
    "body",
}
_OPEN |= {"resident", "eviction_policies", "attributes"}


def with_new_fields(value: Any, name: str = "") -> Any:
    """Every object with two fields more, of which the first is in front."""
    if isinstance(value, list):
        return [with_new_fields(each) for each in value]
    if not isinstance(value, dict) or name in _OPEN:
        return value
    known = {key: with_new_fields(each, key) for key, each in value.items()}
    return {"a_new": [1], **known, "z_new": {"deep": True}}
