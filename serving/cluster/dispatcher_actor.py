"""The dispatcher as a Ray actor: requests over RPC, the rest as actor calls.

Ray restarts it with an empty queue; gateways resubmit with the same request ids. Whoever looks up
an actor imports its class's module, so a gateway imports this one: it must stay light.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import ray
from msgspec import msgpack
from prometheus_client.metrics_core import Metric

from assets.content import Blob
from assets.storage.private_folder import keep_private
from router.pool import Pool
from serving.cluster.addressing import dispatcher_name, process_identity
from serving.cluster.environment import ON_THE_HEAD
from serving.cluster.rpc import PROTOCOL, Incompatible, RpcServer
from serving.cluster.sealed_settings import SealedSettings, seal
from serving.generation.contract import GenerationResult, Phase
from serving.generation.exchange import sent
from serving.generation.following import Follow
from serving.generation.submission import Cancellation, Submission
from serving.logs import configure
from serving.settings import Settings

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from serving.pool.dispatcher import Dispatcher

log = logging.getLogger(__name__)

#: For a restart of gateways that speak another protocol, before they are refused.
_RESTART_S = 60.0


class DispatcherActor:
    """A pool's dispatcher and autoscaler, on one event loop."""

    def __init__(self, sealed: SealedSettings, pool: Pool) -> None:
        from router.admission import QueueLimits
        from serving.cluster.replicas import ServeReplicaLauncher
        from serving.pool.autoscaler import Autoscaler
        from serving.pool.dispatcher import Dispatcher

        keep_private()
        settings = sealed.open()
        configure(settings.log_format, settings.log_level)
        limits = QueueLimits(settings.queue_per_tenant, settings.queue_total)
        self._dispatcher = Dispatcher([], limits, pool=pool.name)
        self._autoscaler = Autoscaler(pool, self._dispatcher, ServeReplicaLauncher(settings, pool))
        self._dispatcher.announcer.starting = self._autoscaler.report.waking
        self._server = RpcServer(
            process_identity(settings),
            unary={
                "follow": self._follow,
                "unfollow": self._unfollow,
                "progress": self._progress,
                "cancel": self._cancel,
                "estimate": self._estimate,
            },
            streams={"submit": self._submission, "events": self._events},
        )
        self._autoscaling: asyncio.Task[None] | None = None

    async def _ready(self) -> Dispatcher:
        if self._autoscaling is None:
            self._dispatcher.start()
            self._autoscaling = asyncio.create_task(self._autoscaler.run())
        return self._dispatcher

    # When Ray restarts an actor with new code, it keeps its wrappers of the methods, by name: none
    # may go, nor a coroutine become a function (tests/golden/frozen.json). So this is not
    # ``_submit``, which was a coroutine in the first release.
    def _submission(self, message: bytes) -> AsyncIterator[bytes]:
        return sent(partial(self._result, msgpack.decode(message, type=Submission)))

    async def _result(
        self, submission: Submission, _: Callable[[bytes], None]
    ) -> tuple[GenerationResult, None]:
        dispatcher = await self._ready()
        return await dispatcher.submit(submission), None

    async def _events(self, message: bytes) -> AsyncIterator[bytes]:
        stream = msgpack.decode(message, type=str)
        async with aclosing(self._dispatcher.announcer.following.events(stream)) as events:
            async for envelope in events:
                yield msgpack.encode(envelope)

    async def _follow(self, message: bytes) -> bytes:
        follow = msgpack.decode(message, type=Follow)
        return msgpack.encode(await self._dispatcher.announcer.following.follow(follow))

    async def _unfollow(self, message: bytes) -> bytes:
        self._dispatcher.announcer.following.unfollow(
            *msgpack.decode(message, type=tuple[str, str])
        )
        return b""

    async def _progress(self, message: bytes) -> bytes:
        key = msgpack.decode(message, type=str)
        return msgpack.encode(await self._dispatcher.announcer.polled(key))

    async def _cancel(self, message: bytes) -> bytes:
        self._dispatcher.cancel(msgpack.decode(message, type=Cancellation))
        return b""

    async def _estimate(self, message: bytes) -> bytes:
        dispatcher = await self._ready()
        return msgpack.encode(dispatcher.estimate(msgpack.decode(message, type=Submission)))

    async def address(self) -> str:
        """Asked by gateways of the first release, which speak another protocol. They fail their
        jobs when they are refused; if they are restarted in time, the jobs run again.

        Raises:
            Incompatible: after a minute.
        """
        refusal = Incompatible(f"this dispatcher speaks protocol {PROTOCOL}: restart its gateways")
        log.error("%s", refusal)
        await asyncio.sleep(_RESTART_S)
        raise refusal

    async def rpc_address(self) -> str:
        """The RPC address for requests."""
        await self._ready()
        return await self._server.start(ray.util.get_node_ip_address())

    async def phase_began(self, name: str, phase: Phase, at_s: float) -> None:
        self._autoscaler.timelines.phase_began(name, phase, at_s)

    async def resident(self) -> frozenset[str]:
        return (await self._ready()).roster.residency.resident()

    async def forget(self, keys: Collection[str]) -> None:
        await (await self._ready()).roster.residency.forget(keys)

    async def warm(self, blobs: Sequence[Blob]) -> dict[str, str]:
        return await (await self._ready()).roster.residency.warm(blobs)

    async def residency(self, keys: Collection[str]) -> bytes:
        return msgpack.encode((await self._ready()).roster.residency.residency(keys))

    async def directives(self) -> bytes:
        return msgpack.encode((await self._ready()).roster.residency.directives())

    async def hold(self, keys: Collection[str]) -> None:
        (await self._ready()).roster.residency.hold(keys)

    async def status(self) -> bytes:
        return msgpack.encode((await self._ready()).status())

    async def pool(self) -> bytes:
        await self._ready()
        return msgpack.encode(self._autoscaler.report.status())

    async def starting(self) -> bytes:
        await self._ready()
        return msgpack.encode(self._autoscaler.report.waking())

    async def families(self) -> list[Metric]:
        await self._ready()
        return self._autoscaler.report.families()

    async def process(self) -> tuple[str, int]:
        """Node id and process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    async def renew(self) -> None:
        """Begin to replace every replica."""
        await self._ready()
        self._autoscaler.renew()


def start_dispatcher(settings: Settings, pool: Pool) -> ActorHandle:
    """Start the pool's dispatcher; return its actor handle."""
    actor = ray.remote(DispatcherActor).options(
        name=dispatcher_name(pool.name),
        namespace=settings.ray_namespace,
        num_cpus=0,
        resources=ON_THE_HEAD,
        max_restarts=-1,
        max_concurrency=10_000,
    )
    return actor.remote(seal(settings), pool)
