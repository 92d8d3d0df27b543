"""The gateways' client for all dispatchers; imports no code of dispatchers or replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import ray
from msgspec import msgpack, structs
from prometheus_client.metrics_core import Metric
from ray.exceptions import RayActorError

from assets.content import Blob
from serving.cluster.addressing import dispatcher_name, process_identity
from serving.cluster.rpc import RemoteError, RpcClient, RpcError
from serving.errors import DeadlineExceeded, EarlierVersion, GenerationFailed
from serving.generation.contract import (
    REPORT_TIMEOUT_S,
    WARM_TIMEOUT_S,
    Detail,
    GenerationResult,
    Residency,
)
from serving.generation.events import Starting
from serving.generation.exchange import received
from serving.generation.following import (
    Envelope,
    Follow,
    Followed,
    Followers,
    FollowReply,
    SourceLost,
)
from serving.generation.status import DispatcherStatus, PoolEstimate, PoolStatus
from serving.generation.submission import Cancellation, Submission
from serving.settings import Settings

if TYPE_CHECKING:
    from ray.actor import ActorHandle


_RETRY_S = 0.2
#: For answers in transit at the deadline.
_GRACE_S = 5.0
#: Timeout of calls that wait for no replica.
_CALL_S = 10.0
_CALL_TIMEOUTS_S = {"warm": WARM_TIMEOUT_S + _CALL_S, "forget": REPORT_TIMEOUT_S + _CALL_S}
_NO_ANSWER = object()


class _NoDispatcher(Exception):
    """The actor does not exist or does not answer."""


class _DispatcherClient:
    def __init__(self, settings: Settings, pool: str) -> None:
        self._namespace = settings.ray_namespace
        self._identity = process_identity(settings)
        self._pool = pool
        self._actor: ActorHandle | None = None
        self._rpc: RpcClient | None = None
        #: The dispatcher may have a new address.
        self._is_stale = False

    async def _find(self) -> ActorHandle:
        if self._actor is None:
            try:
                self._actor = await asyncio.to_thread(
                    ray.get_actor, dispatcher_name(self._pool), self._namespace
                )
            except ValueError:
                raise _NoDispatcher from None
        return self._actor

    async def _open(self) -> RpcClient:
        if self._rpc is None or self._is_stale:
            address = await self._address()
            if self._rpc is None or self._rpc.address != address:
                dead, self._rpc = self._rpc, RpcClient(address, self._identity)
                if dead is not None:
                    await dead.close()
            self._is_stale = False
        return self._rpc

    async def _address(self) -> str:
        actor = await self._find()
        if not hasattr(actor, "rpc_address"):
            raise EarlierVersion(
                f"the dispatcher of {self._pool} is of an earlier version; restart"
            )
        address: str = await actor.rpc_address.remote()
        return address

    async def submit(self, submission: Submission) -> GenerationResult:
        """Submit; repeat after a dispatcher's death, in the remaining time."""
        deadline = time.monotonic() + submission.timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                # In case a dispatcher hangs and does not enforce the deadline.
                async with asyncio.timeout(left_s + _GRACE_S):
                    rpc = await self._open()
                    attempt = structs.replace(submission, timeout_s=left_s)
                    result, _ = await received(rpc.stream("submit", msgpack.encode(attempt)))
                    return result
            except RemoteError as error:
                raise GenerationFailed(f"the dispatcher failed: {error}") from None
            except (RayActorError, RpcError, _NoDispatcher, TimeoutError):
                self._actor = None
                self._is_stale = True
                await asyncio.sleep(_RETRY_S)
        raise DeadlineExceeded("the dispatcher did not restart before the deadline")

    async def events(self, stream: str) -> AsyncGenerator[Envelope]:
        """The :class:`~serving.generation.following.EventSource`'s."""
        try:
            rpc = await self._open()
            async with aclosing(rpc.stream("events", msgpack.encode(stream))) as messages:
                async for message in messages:
                    yield msgpack.decode(message, type=Envelope)
        except (RayActorError, RpcError, EarlierVersion, _NoDispatcher) as error:
            self._actor = None
            self._is_stale = True
            raise SourceLost(f"the dispatcher of {self._pool}: {error}") from None
        raise SourceLost(f"the dispatcher of {self._pool} ended the stream")

    async def follow(self, follow: Follow) -> FollowReply:
        return msgpack.decode(await self._call("follow", msgpack.encode(follow)), type=FollowReply)

    async def unfollow(self, stream: str, key: str) -> None:
        await self._call("unfollow", msgpack.encode((stream, key)))

    async def progress(self, key: str) -> Sequence[bytes]:
        """Raises SourceLost."""
        return msgpack.decode(await self._call("progress", msgpack.encode(key)), type=list[bytes])

    async def cancel(self, cancellation: Cancellation) -> None:
        """Raises SourceLost."""
        await self._call("cancel", msgpack.encode(cancellation))

    async def estimate(self, submission: Submission) -> PoolEstimate | None:
        """Raises SourceLost."""
        answer = await self._call("estimate", msgpack.encode(submission))
        return msgpack.decode(answer, type=PoolEstimate | None)

    async def _call(self, method: str, message: bytes) -> bytes:
        try:
            async with asyncio.timeout(_CALL_S):
                return await (await self._open()).call(method, message)
        except (RayActorError, RpcError, EarlierVersion, _NoDispatcher, TimeoutError) as error:
            self._is_stale = True
            raise SourceLost(f"the dispatcher of {self._pool}: {error}") from None

    async def ask(self, method: str, *arguments: object) -> Any:
        """Call a repeatable method. Raises _NoDispatcher."""
        try:
            async with asyncio.timeout(_CALL_TIMEOUTS_S.get(method, _CALL_S)):
                return await getattr(await self._find(), method).remote(*arguments)
        except (RayActorError, TimeoutError):
            self._actor = None
            raise _NoDispatcher from None


class ClusterBackend:
    """A :class:`~serving.generation.backend.GenerationBackend` over all pools' dispatchers.

    Calls other than submissions skip unresponsive dispatchers.
    """

    def __init__(self, settings: Settings) -> None:
        self._pools = {pool.name: pool for pool in settings.resolved_pools}
        self._clients = {name: _DispatcherClient(settings, name) for name in self._pools}
        self._followers = {name: Followers(client) for name, client in self._clients.items()}

    async def submit(self, submission: Submission) -> GenerationResult:
        return await self._client(submission.request.pool).submit(submission)

    async def estimate(self, submission: Submission) -> PoolEstimate | None:
        try:
            return await self._client(submission.request.pool).estimate(submission)
        except SourceLost:
            return None

    def follow(
        self, pool: str, key: str, detail: Detail, after: str, until: asyncio.Future[Any]
    ) -> AsyncGenerator[Followed | None]:
        return self._followers[self._name(pool)].follow(key, detail, after, until)

    async def progress(self, pool: str, key: str) -> Sequence[bytes]:
        try:
            return await self._client(pool).progress(key)
        except SourceLost:
            return ()

    async def cancel(self, pool: str, cancellation: Cancellation) -> None:
        with suppress(SourceLost):  # its runner will lose its claim
            await self._client(pool).cancel(cancellation)

    def _name(self, pool: str) -> str:
        return pool or next(iter(self._clients))

    def _client(self, pool: str) -> _DispatcherClient:
        return self._clients[self._name(pool)]

    async def _ask_all(self, method: str, *arguments: object) -> dict[str, Any]:
        async def ask(name: str) -> tuple[str, Any]:
            try:
                return name, await self._clients[name].ask(method, *arguments)
            except _NoDispatcher:
                return name, _NO_ANSWER

        answers = await asyncio.gather(*map(ask, self._clients))
        return {name: answer for name, answer in answers if answer is not _NO_ANSWER}

    async def resident(self) -> frozenset[str]:
        return frozenset[str]().union(*(await self._ask_all("resident")).values())

    async def forget(self, keys: Collection[str]) -> None:
        await self._ask_all("forget", set(keys))

    async def warm(self, blobs: Sequence[Blob]) -> Mapping[str, str]:
        tier_of_replica: dict[str, str] = {}
        for tiers in (await self._ask_all("warm", blobs)).values():
            tier_of_replica |= tiers
        return tier_of_replica

    async def residency(self, keys: Collection[str]) -> Mapping[str, Residency]:
        merged: dict[str, Residency] = {}
        for encoded in (await self._ask_all("residency", list(keys))).values():
            residencies = msgpack.decode(encoded, type=dict[str, Residency])
            for key, residency in residencies.items():
                known = merged.get(key, Residency((), {}))
                merged[key] = Residency(
                    known.replicas + residency.replicas, {**known.nodes, **residency.nodes}
                )
        return merged

    async def hold(self, keys: Collection[str]) -> None:
        await self._ask_all("hold", set(keys))

    async def dispatchers(self) -> Mapping[str, DispatcherStatus]:
        encoded = await self._ask_all("status")
        return {n: msgpack.decode(each, type=DispatcherStatus) for n, each in encoded.items()}

    async def families(self) -> list[Metric]:
        return merge_families((await self._ask_all("families")).values())

    async def starting(self, pool: str) -> Starting | None:
        try:
            encoded = await self._client(pool).ask("starting")
        except _NoDispatcher:
            return None
        return msgpack.decode(encoded, type=Starting | None)

    async def pools(self) -> Sequence[PoolStatus]:
        encoded = await self._ask_all("pool")
        return [
            msgpack.decode(encoded[name], type=PoolStatus) if name in encoded else PoolStatus(pool)
            for name, pool in self._pools.items()
        ]


def merge_families(pools: Iterable[Sequence[Metric]]) -> list[Metric]:
    """Merge the pools' metrics; each family occurs once."""
    merged: dict[str, Metric] = {}
    for families in pools:
        for family in families:
            known = merged.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            known.samples += family.samples
    return list(merged.values())
