"""Following requests: messages between a gateway and a dispatcher, and the gateway's end.

A gateway has one stream of events per dispatcher, for all its followers, and calls ``follow`` for
each request. The answer holds what happened before: the events after the last one seen, if the
dispatcher still has them, else a snapshot.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import NamedTuple, Protocol

from msgspec import Struct

from serving.generation.contract import DETAILS, Detail
from serving.generation.events import detail_of, kind_of
from serving.generation.mailbox import Gap, Mailbox

log = logging.getLogger(__name__)

#: What a slow follower may fall behind, before it continues from a snapshot.
_EVENTS = 64
_RETRY_S = 0.5
#: Followers hear of silence this often.
IDLE_S = 10.0


class Follow(Struct, frozen=True, tag_field="type", tag="follow"):
    """Follow ``key``, a job or request, on the gateway's ``stream``. ``after``: the id of the last
    event seen, from any gateway."""

    stream: str
    key: str
    detail: Detail
    after: str = ""


class FollowReply(Struct, frozen=True, tag_field="type", tag="follow-reply"):
    """Encoded events by number; later numbers come on the stream. Ids are ``epoch-number``."""

    epoch: str
    number: int
    events: tuple[tuple[int, bytes], ...] = ()


class Envelope(Struct, frozen=True, tag_field="type", tag="envelope"):
    """An encoded event on a gateway's stream. The first has no key: the stream is open."""

    key: str
    number: int = 0
    event: bytes = b""


class Followed(NamedTuple):
    id: str
    event: bytes


class SourceLost(Exception):
    """The source does not answer; it may again."""


class EventSource(Protocol):
    """A dispatcher. Every method raises SourceLost."""

    def events(self, stream: str) -> AsyncGenerator[Envelope]: ...

    async def follow(self, follow: Follow) -> FollowReply: ...

    async def unfollow(self, stream: str, key: str) -> None: ...


class _Follower:
    def __init__(self, detail: Detail) -> None:
        self.detail: Detail = detail
        self.mailbox: Mailbox[Envelope] = Mailbox(_EVENTS, IDLE_S)

    def wants(self, event: bytes) -> bool:
        return includes(self.detail, detail_of(kind_of(event)))


class Followers:
    """All followers of one dispatcher's requests in this process; they share one stream."""

    def __init__(self, source: EventSource) -> None:
        self._source = source
        self._followers: dict[str, list[_Follower]] = {}
        self._stream = ""  # empty: not open
        self._reading: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return sum(map(len, self._followers.values()))

    async def follow(
        self, key: str, detail: Detail, after: str, until: asyncio.Future[object]
    ) -> AsyncGenerator[Followed | None]:
        """Yield the request's events until ``until`` is done; the request may come later. None:
        nothing happened for IDLE_S."""
        follower = _Follower(detail)
        self._followers.setdefault(key, []).append(follower)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        elif self._stream:
            follower.mailbox.lose()

        def close(_: object) -> None:
            follower.mailbox.close()

        until.add_done_callback(close)
        standing = FollowReply("", 0)
        try:
            async for envelope in follower.mailbox:
                if envelope is Gap.IDLE:
                    yield None
                    continue
                if isinstance(envelope, Envelope):
                    if envelope.number > standing.number and follower.wants(envelope.event):
                        after = f"{standing.epoch}-{envelope.number}"
                        yield Followed(after, envelope.event)
                    continue
                stream = self._stream
                if not stream or until.done():
                    continue  # told again when it opens
                try:
                    wanted = Follow(stream, key, _most(self._followers[key]), after)
                    standing = await self._source.follow(wanted)
                except SourceLost:
                    await asyncio.sleep(_RETRY_S)
                    follower.mailbox.lose()
                    continue
                for number, event in standing.events:
                    if follower.wants(event):
                        after = f"{standing.epoch}-{number}"
                        yield Followed(after, event)
        finally:
            until.remove_done_callback(close)
            self._leave(key, follower)

    def _leave(self, key: str, follower: _Follower) -> None:
        """Never waits: the follower may be cancelled."""
        rest = self._followers[key]
        rest.remove(follower)
        if rest:
            if _most(rest) != _most([follower, *rest]):
                rest[0].mailbox.lose()  # follows again, with less detail
            return
        del self._followers[key]
        stream, reading = self._stream, self._reading
        if not self._followers and reading is not None:
            self._stream, self._reading = "", None
            reading.cancel()
        elif stream:
            task = asyncio.create_task(self._unfollow(stream, key))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _unfollow(self, stream: str, key: str) -> None:
        with suppress(SourceLost):
            await self._source.unfollow(stream, key)
        for other in self._followers.get(key, ()):  # came during the call, which undid theirs
            other.mailbox.lose()

    async def _read(self) -> None:
        while True:
            stream = secrets.token_hex(8)
            try:
                async with aclosing(self._source.events(stream)) as envelopes:
                    async for envelope in envelopes:
                        self._deliver(stream, envelope)
            except SourceLost as error:
                log.info("events are delayed: %s", error)
            except Exception:  # such as a message that is not an envelope
                log.exception("events are delayed")
            self._stream = ""
            await asyncio.sleep(_RETRY_S)

    def _deliver(self, stream: str, envelope: Envelope) -> None:
        if envelope.key:
            for follower in self._followers.get(envelope.key, ()):
                follower.mailbox.put(envelope)
            return
        self._stream = stream
        for followers in self._followers.values():
            for follower in followers:
                follower.mailbox.lose()


def _most(followers: Sequence[_Follower]) -> Detail:
    return max((follower.detail for follower in followers), key=DETAILS.index)


def includes(detail: Detail, other: Detail) -> bool:
    """Return whether a follower with ``detail`` gets events of ``other``."""
    return DETAILS.index(detail) >= DETAILS.index(other)
