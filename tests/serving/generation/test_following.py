"""Following: both ends together, through slow readers, lost streams and returning followers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from serving.generation.contract import Detail
from serving.generation.events import Assigned, Event, Preview, Step, decode, encode
from serving.generation.following import (
    Envelope,
    Follow,
    Followed,
    Followers,
    FollowReply,
    SourceLost,
)
from serving.pool.following import RING, Following

BROKEN = Envelope("broken")


class Dispatcher:
    """A source that the test breaks, with a snapshot that counts."""

    def __init__(self) -> None:
        self.snapshots = 0
        self.details: dict[str, Detail] = {}
        self.streams = 0
        self.following = Following(self.snapshot, self.details.__setitem__)

    async def snapshot(self, key: str) -> Sequence[bytes]:
        self.snapshots += 1
        return [encode(Assigned(f"snapshot {self.snapshots}"))]

    async def events(self, stream: str) -> AsyncGenerator[Envelope]:
        self.streams += 1
        async with aclosing(self.following.events(stream)) as envelopes:
            async for envelope in envelopes:
                if envelope == BROKEN:
                    raise SourceLost("broken")
                yield envelope

    def fail(self) -> None:
        for mailbox in self.following._streams.values():
            mailbox.put(BROKEN)

    async def follow(self, follow: Follow) -> FollowReply:
        return await self.following.follow(follow)

    async def unfollow(self, stream: str, key: str) -> None:
        self.following.unfollow(stream, key)


class Reader:
    """A follower that reads as fast as it can."""

    def __init__(
        self, followers: Followers, key: str, detail: Detail = "steps", after: str = ""
    ) -> None:
        self.until: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.got: list[Followed] = []
        self._task = asyncio.create_task(
            self._read(followers.follow(key, detail, after, self.until))
        )

    async def _read(self, events: AsyncIterator[Followed | None]) -> None:
        async for event in events:
            if event is not None:
                self.got.append(event)

    @property
    def events(self) -> list[Event | None]:
        return [decode(followed.event) for followed in self.got]

    async def end(self) -> None:
        self.until.set_result(None)
        await self._task


@asynccontextmanager
async def followers_of(source: Dispatcher) -> AsyncIterator[Followers]:
    followers = Followers(source)
    yield followers
    assert len(followers) == 0
    assert source.following.followed() == []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def step(number: int) -> Step:
    return Step(number, 100)


async def test_a_follower_gets_a_snapshot_then_what_happens() -> None:
    source = Dispatcher()
    async with followers_of(source) as followers:
        reader = Reader(followers, "job")
        await until(lambda: len(reader.got) == 1)
        source.following.publish("job", step(1))
        source.following.publish("other", step(9))
        source.following.publish("job", step(2))
        await until(lambda: len(reader.got) == 3)
        await reader.end()
    assert reader.events == [Assigned("snapshot 1"), step(1), step(2)]
    assert source.details == {"job": "nothing"}


async def test_nothing_is_kept_of_a_request_that_nobody_follows() -> None:
    source = Dispatcher()
    source.following.publish("job", step(1))
    assert source.following.detail("job") == "nothing"
    assert source.following._requests == {}


async def test_all_followers_of_a_process_share_one_stream() -> None:
    source = Dispatcher()
    async with followers_of(source) as followers:
        readers = [Reader(followers, f"job {index % 10}") for index in range(50)]
        await until(lambda: all(len(reader.got) == 1 for reader in readers))
        for index in range(10):
            source.following.publish(f"job {index}", step(index))
        await until(lambda: all(len(reader.got) == 2 for reader in readers))
        assert source.streams == 1
        for reader in readers:
            await reader.end()


async def test_a_follower_returns_without_a_gap_through_another_gateway() -> None:
    source = Dispatcher()
    async with followers_of(source) as first, followers_of(source) as second:
        reader = Reader(first, "job")
        await until(lambda: len(reader.got) == 1)
        source.following.publish("job", step(1))
        await until(lambda: len(reader.got) == 2)
        await reader.end()
        source.following.publish("job", step(2))
        other = Reader(second, "job", after=reader.got[-1].id)
        await until(lambda: len(other.got) == 1)
        source.following.publish("job", step(3))
        await until(lambda: len(other.got) == 2)
        await other.end()
    assert other.events == [step(2), step(3)]
    assert source.snapshots == 1


async def test_a_follower_that_missed_more_than_the_ring_gets_a_snapshot() -> None:
    source = Dispatcher()
    async with followers_of(source) as followers:
        reader = Reader(followers, "job")
        await until(lambda: len(reader.got) == 1)
        await reader.end()
        for number in range(RING + 1):
            source.following.publish("job", step(number))
        late = Reader(followers, "job", after=reader.got[-1].id)
        await until(lambda: len(late.got) == 1)
        await late.end()
        stranger = Reader(followers, "job", after="another-5")
        await until(lambda: len(stranger.got) == 1)
        await stranger.end()
    assert late.events == [Assigned("snapshot 2")]
    assert stranger.events == [Assigned("snapshot 3")]


@pytest.mark.parametrize("missed", [200, 1000])
async def test_a_slow_follower_goes_on_from_the_ring_or_a_snapshot(missed: int) -> None:
    source = Dispatcher()
    async with followers_of(source) as followers:
        end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        slow = followers.follow("job", "steps", "", end)
        fast = Reader(followers, "job")
        first = await anext(slow)
        assert first is not None
        assert decode(first.event) == Assigned("snapshot 1")
        await until(lambda: len(fast.got) == 1)
        for number in range(missed):
            source.following.publish("job", step(number))
            if number % 10 == 9:
                await until(lambda number=number: len(fast.got) == number + 2)  # type: ignore[misc]
        expected: list[Event | None] = [step(number) for number in range(missed)]
        if missed > RING:
            expected = [Assigned("snapshot 3")]
        got: list[Event | None] = []
        while len(got) < len(expected):
            event = await anext(slow)
            if event is not None:
                got.append(decode(event.event))
        assert got == expected
        end.set_result(None)
        assert [event async for event in slow] == []
        await fast.end()


async def test_a_lost_stream_is_opened_again_and_followers_go_on() -> None:
    source = Dispatcher()
    async with followers_of(source) as followers:
        readers = [Reader(followers, "job"), Reader(followers, "other")]
        await until(lambda: all(len(reader.got) == 1 for reader in readers))
        source.fail()
        await until(lambda: source.following._streams == {})
        source.following.publish("job", step(1))
        await until(lambda: len(readers[0].got) == 2)
        source.following.publish("other", step(2))
        await until(lambda: len(readers[1].got) == 2)
        for reader in readers:
            await reader.end()
    assert readers[0].events[1:] == [step(1)]
    assert readers[1].events[1:] == [step(2)]


async def test_each_follower_gets_its_detail_and_the_replica_is_told_the_most() -> None:
    source = Dispatcher()
    async with followers_of(source) as followers:
        details: tuple[Detail, ...] = ("states", "steps", "previews")
        readers = [Reader(followers, "job", detail) for detail in details]
        await until(lambda: all(len(reader.got) == 1 for reader in readers))
        assert source.details == {"job": "previews"}
        for event in (Assigned("a"), step(1), Preview(0, 1, b"jpeg")):
            source.following.publish("job", event)
        await until(lambda: len(readers[2].got) == 4)
        assert [len(reader.got) for reader in readers] == [2, 3, 4]
        await readers[2].end()
        await until(lambda: source.details == {"job": "steps"})
        await readers[1].end()
        await until(lambda: source.details == {"job": "states"})
        await readers[0].end()
    assert source.details == {"job": "nothing"}
    assert len(source.following._requests["job"].ring) == 2
