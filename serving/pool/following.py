"""The followers of a pool's requests, one stream per gateway."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from serving.generation.contract import DETAILS, Detail
from serving.generation.events import Event, detail_of, encode, kind_of
from serving.generation.following import Envelope, Follow, FollowReply, includes
from serving.generation.mailbox import Gap, Mailbox

#: Kept per request for followers that return.
RING = 256
#: What a slow gateway may fall behind, before its followers continue from snapshots.
_STREAM_EVENTS = 4096
#: How long a request's events are kept without followers.
_KEPT_S = 60.0


@dataclass(slots=True)
class _FollowedRequest:
    """``since``: every later event is in the ring."""

    since: int
    details: dict[str, Detail] = field(default_factory=dict)
    ring: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=RING))
    left_s: float = 0.0

    @property
    def detail(self) -> Detail:
        return max(self.details.values(), key=DETAILS.index, default="nothing")


class Following:
    """Publishes events of followed requests, by job or request id; others cost nothing."""

    def __init__(
        self,
        snapshot: Callable[[str], Awaitable[Sequence[bytes]]],
        changed: Callable[[str, Detail], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``snapshot`` returns a request's encoded state; ``changed`` learns the detail that its
        followers want."""
        self._snapshot = snapshot
        self._changed = changed
        self._clock = clock
        self._epoch = secrets.token_hex(4)
        self._number = 0
        self._requests: dict[str, _FollowedRequest] = {}
        self._streams: dict[str, Mailbox[Envelope]] = {}

    def followed(self) -> list[str]:
        return [key for key, request in self._requests.items() if request.details]

    def detail(self, key: str) -> Detail:
        request = self._requests.get(key)
        return "nothing" if request is None else request.detail

    def publish(self, key: str, event: Event) -> None:
        if key in self._requests:
            self.forward(key, encode(event))

    def forward(self, key: str, event: bytes) -> None:
        """Publish an encoded event."""
        request = self._requests.get(key)
        if request is None:
            return
        self._number += 1
        kind = kind_of(event)
        if kind != "preview":
            if len(request.ring) == RING:
                request.since = request.ring[0][0]
            request.ring.append((self._number, event))
        wanted = detail_of(kind)
        envelope = Envelope(key, self._number, event)
        for stream, detail in request.details.items():
            if includes(detail, wanted):
                self._streams[stream].put(envelope)

    async def events(self, stream: str) -> AsyncGenerator[Envelope]:
        """Yield a gateway's events, until closed."""
        mailbox = self._streams[stream] = Mailbox(_STREAM_EVENTS)
        try:
            yield Envelope("")
            async for envelope in mailbox:
                # Followers that missed events follow again.
                yield Envelope("") if isinstance(envelope, Gap) else envelope
        finally:
            del self._streams[stream]
            for key in self.followed():
                self.unfollow(stream, key)

    async def follow(self, follow: Follow) -> FollowReply:
        """Raises KeyError: the stream is not open."""
        key = follow.key
        if follow.stream not in self._streams:
            raise KeyError(follow.stream)
        self._forget_left()
        request = self._requests.get(key)
        is_known = request is not None
        if request is None:
            request = self._requests[key] = _FollowedRequest(self._number)
        before = request.detail
        request.details[follow.stream] = follow.detail
        if request.detail != before:
            self._changed(key, request.detail)
        epoch, _, number = follow.after.partition("-")
        now = self._number
        if is_known and epoch == self._epoch and number.isdigit() and int(number) >= request.since:
            missed = tuple(each for each in request.ring if each[0] > int(number))
            return FollowReply(self._epoch, now, missed)
        snapshot = await self._snapshot(key)
        # A client that leaves between two of them gets them all again.
        numbers = [0] * (len(snapshot) - 1) + [now]
        return FollowReply(
            self._epoch, now, tuple(zip(numbers, snapshot, strict=True)) if snapshot else ()
        )

    def unfollow(self, stream: str, key: str) -> None:
        request = self._requests.get(key)
        if request is None or request.details.pop(stream, None) is None:
            return
        if not request.details:
            request.left_s = self._clock()
        self._changed(key, request.detail)

    def _forget_left(self) -> None:
        oldest_s = self._clock() - _KEPT_S
        left = [k for k, r in self._requests.items() if not r.details and r.left_s < oldest_s]
        for key in left:
            del self._requests[key]
