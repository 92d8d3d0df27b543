"""The RPC methods of a dispatcher: requests, events, cancellation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial

from msgspec import msgpack

from serving.cluster.identity import ProcessIdentity
from serving.cluster.rpc import RpcServer
from serving.generation.contract import GenerationResult
from serving.generation.exchange import sent
from serving.generation.following import Follow
from serving.generation.submission import Cancellation, Submission
from serving.pool.dispatcher import Dispatcher


class DispatcherRpc:
    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._following = dispatcher.announcer.following

    def server(self, identity: ProcessIdentity) -> RpcServer:
        """The server, not started."""
        return RpcServer(
            identity,
            unary={
                "follow": self._follow,
                "unfollow": self._unfollow,
                "progress": self._progress,
                "cancel": self._cancel,
            },
            streams={"submit": self._submission, "events": self._events},
        )

    def _submission(self, message: bytes) -> AsyncIterator[bytes]:
        return sent(partial(self._result, msgpack.decode(message, type=Submission)))

    async def _result(
        self, submission: Submission, _: Callable[[bytes], None]
    ) -> tuple[GenerationResult, None]:
        return await self._dispatcher.submit(submission), None

    async def _events(self, message: bytes) -> AsyncIterator[bytes]:
        stream = msgpack.decode(message, type=str)
        async with aclosing(self._following.events(stream)) as events:
            async for envelope in events:
                yield msgpack.encode(envelope)

    async def _follow(self, message: bytes) -> bytes:
        follow = msgpack.decode(message, type=Follow)
        return msgpack.encode(await self._following.follow(follow))

    async def _unfollow(self, message: bytes) -> bytes:
        self._following.unfollow(*msgpack.decode(message, type=tuple[str, str]))
        return b""

    async def _progress(self, message: bytes) -> bytes:
        key = msgpack.decode(message, type=str)
        return msgpack.encode(await self._dispatcher.announcer.polled(key))

    async def _cancel(self, message: bytes) -> bytes:
        self._dispatcher.cancel(msgpack.decode(message, type=Cancellation))
        return b""
