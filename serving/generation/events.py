"""Events of a request, from its queue to its result.

They flow worker → dispatcher → gateway as encoded messages, forwarded undecoded. A request's last
event is :class:`Done` or a :class:`~serving.generation.failure.Failure`.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Struct

from serving.generation.contract import GenerationResult, Phase, ReplicaReport
from serving.generation.failure import Failure


class Queued(Struct, frozen=True, tag_field="type", tag="queued"):
    """Waiting. ``position``: requests that go first, an estimate; fairness may change it."""

    position: int
    expected_s: float


class Starting(Struct, frozen=True, tag_field="type", tag="starting"):
    """The pool is asleep and wakes. ``expected_s``: until its replica is ready."""

    pool: str
    phase: Phase
    expected_s: float | None = None


class Assigned(Struct, frozen=True, tag_field="type", tag="assigned"):
    """Sent to a replica. ``attempt`` counts from 1; another follows a lost replica."""

    replica: str
    attempt: int = 1


class Fetching(Struct, frozen=True, tag_field="type", tag="fetching"):
    """The replica leases and fetches the recipe's blobs."""

    blobs: int


class Step(Struct, frozen=True, tag_field="type", tag="step"):
    """``step`` of ``steps`` is done, for all images of the batch from ``first``."""

    step: int
    steps: int
    first: int = 0


class ImageReady(Struct, frozen=True, tag_field="type", tag="image"):
    """An encoded image, by its place in the request's seeds."""

    index: int
    data: bytes


class Done(Struct, frozen=True, tag_field="type", tag="done"):
    """``result`` without images, which were sent before. ``report``: for the dispatcher."""

    result: GenerationResult
    report: ReplicaReport | None = None


Event: TypeAlias = Queued | Starting | Assigned | Fetching | Step | ImageReady | Done | Failure

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


class _Tag(Struct):
    type: str


_TAGS = msgspec.msgpack.Decoder(_Tag)
_KNOWN = frozenset(
    kind.__struct_config__.tag
    for kind in (Queued, Starting, Assigned, Fetching, Step, ImageReady, Done, Failure)
)


def encode(event: Event) -> bytes:
    return _ENCODER.encode(event)


def decode(data: bytes) -> Event | None:
    """None for a kind of a newer version.

    Raises:
        msgspec.DecodeError: not an event.
    """
    if _TAGS.decode(data).type not in _KNOWN:
        return None
    return _DECODER.decode(data)
