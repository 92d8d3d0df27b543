"""Events of a request, from its queue to its result.

They flow worker → dispatcher → gateway as encoded messages, forwarded undecoded. A request's last
event is :class:`Done` or a :class:`~serving.generation.failure.Failure`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, get_args

import msgspec
from msgspec import Struct, field

from serving.generation.contract import Detail, GenerationResult, Phase, ReplicaReport
from serving.generation.failure import Failure


class Queued(Struct, frozen=True, tag_field="type", tag="queued"):
    """Waiting. ``position``: requests before it; ``expected_s``: until it starts. Estimates: later
    requests may go first. None: not known yet."""

    position: int | None = None
    expected_s: float | None = None


class Starting(Struct, frozen=True, tag_field="type", tag="starting"):
    """The pool is asleep and wakes. ``spent_s``: seconds of each phase so far."""

    pool: str
    phase: Phase
    spent_s: Mapping[Phase, float] = field(default_factory=dict)


class Assigned(Struct, frozen=True, tag_field="type", tag="assigned"):
    """Sent to a replica. ``attempt`` counts from 1; another follows a lost replica."""

    replica: str
    attempt: int = 1


class Fetching(Struct, frozen=True, tag_field="type", tag="fetching"):
    """The replica leases and fetches the recipe's blobs."""

    blobs: int


class Step(Struct, frozen=True, tag_field="type", tag="step"):
    """``step`` of ``steps`` is done, for a batch of ``images`` from the request's image ``first``.

    On a GPU it may be among the last two that were queued. ``fraction``: of all images' steps.
    """

    step: int
    steps: int
    first: int = 0
    images: int = 1
    fraction: float = 0.0


class Preview(Struct, frozen=True, tag_field="type", tag="preview"):
    """An unfinished image as a small JPEG file, by its place in the request's seeds."""

    index: int
    step: int
    data: bytes


class ImageReady(Struct, frozen=True, tag_field="type", tag="image"):
    """An image is encoded, by its place in the request's seeds. ``data`` is for the requester;
    followers get none."""

    index: int
    data: bytes = b""


class Done(Struct, frozen=True, tag_field="type", tag="done"):
    """``result`` with its last image; the others were sent before. ``report``: for the
    dispatcher."""

    result: GenerationResult
    report: ReplicaReport | None = None


Event: TypeAlias = (
    Queued | Starting | Assigned | Fetching | Step | Preview | ImageReady | Done | Failure
)

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


class _Tag(Struct):
    type: str


_TAGS = msgspec.msgpack.Decoder(_Tag)
_KNOWN = frozenset(kind.__struct_config__.tag for kind in get_args(Event))


def kind_of(data: bytes) -> str:
    """The kind of an encoded event, known or not.

    Raises:
        msgspec.DecodeError: not an event.
    """
    return _TAGS.decode(data).type


_DETAILS: Mapping[str, Detail] = {"step": "steps", "preview": "previews"}


def detail_of(kind: str) -> Detail:
    """The detail to which events of a kind belong."""
    return _DETAILS.get(kind, "states")


def encode(event: Event) -> bytes:
    return _ENCODER.encode(event)


def decode(data: bytes) -> Event | None:
    """None for a kind of a newer version.

    Raises:
        msgspec.DecodeError: not an event.
    """
    if kind_of(data) not in _KNOWN:
        return None
    return _DECODER.decode(data)
