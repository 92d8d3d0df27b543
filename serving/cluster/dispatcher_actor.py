"""The dispatcher as a Ray actor, and the gateways' client for it.

Requests arrive over RPC (serving/cluster/rpc.py), everything else as actor calls. When the actor
dies, Ray restarts it with an empty queue and the gateways submit again under the same request ids.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import ray
from prometheus_client.metrics_core import Metric
from ray.exceptions import RayActorError

from assets.content import Blob
from assets.storage.private_folder import keep_private
from router.admission import QueueLimits
from router.autoscaling import Pool
from serving.cluster.environment import ON_THE_HEAD
from serving.cluster.outcome import caught, thrown
from serving.cluster.replicas import ServeReplicaLauncher, dispatcher_name, wire_key
from serving.cluster.rpc import RemoteFailed, Wire, WireError, WireServer
from serving.cluster.sealed_settings import SealedSettings, seal
from serving.errors import DeadlineExceeded, GenerationFailed
from serving.generation.contract import ClusterDirectives, GenerationResult, Residency
from serving.generation.submission import Submission
from serving.logs import configure
from serving.pool.autoscaler import Autoscaler, Phase
from serving.pool.dispatcher import Dispatcher
from serving.pool.metrics import together
from serving.pool.residency import PATIENCE_S, WARM_S
from serving.settings import Settings

_RETRY_S = 0.2
#: Extra time for an answer that is in transit at the deadline.
_GRACE_S = 5.0
#: Timeout of calls that the dispatcher answers itself; those in the table wait for replicas.
_CALL_S = 10.0
_CALL_TIMEOUTS_S = {"warm": WARM_S + _CALL_S, "forget": PATIENCE_S + _CALL_S}
_NO_ANSWER = object()


class DispatcherActor:
    """The dispatcher and the autoscaler of one pool, on one event loop."""

    def __init__(self, sealed: SealedSettings, pool: Pool) -> None:
        keep_private()
        settings = sealed.open()
        configure(settings.log_format, settings.log_level)
        key = wire_key(settings)
        limits = QueueLimits(settings.queue_per_tenant, settings.queue_total)
        self._dispatcher = Dispatcher([], limits, pool=pool.name)
        self._autoscaler = Autoscaler(pool, self._dispatcher, ServeReplicaLauncher(settings, pool))
        self._wire = WireServer({"submit": self._submit}, key)
        self._address = ""
        self._autoscaling: asyncio.Task[None] | None = None

    async def _ready(self) -> Dispatcher:
        if self._autoscaling is None:
            self._dispatcher.start()
            self._autoscaling = asyncio.create_task(self._autoscaler.run())
        return self._dispatcher

    async def _submit(self, submission: Submission) -> Any:
        dispatcher = await self._ready()
        return await caught(dispatcher.submit(submission))

    async def address(self) -> str:
        """The RPC address that accepts requests."""
        await self._ready()
        if not self._address:
            self._address = await self._wire.start(ray.util.get_node_ip_address())
        return self._address

    async def told(self, name: str, phase: Phase, at_s: float) -> None:
        """Called by a starting replica when a phase of its start begins."""
        self._autoscaler.told(name, phase, at_s)

    async def resident(self) -> frozenset[str]:
        return (await self._ready()).holdings.resident()

    async def forget(self, keys: Collection[str]) -> None:
        await (await self._ready()).holdings.forget(keys)

    async def warm(self, blobs: Sequence[Blob]) -> dict[str, str]:
        return await (await self._ready()).holdings.warm(blobs)

    async def residency(self, keys: Collection[str]) -> dict[str, Residency]:
        return (await self._ready()).holdings.residency(keys)

    async def directives(self) -> ClusterDirectives:
        return (await self._ready()).holdings.directives()

    async def hold(self, keys: Collection[str]) -> None:
        (await self._ready()).holdings.hold(keys)

    async def status(self) -> dict[str, Any]:
        return (await self._ready()).status()

    async def pool(self) -> dict[str, Any]:
        await self._ready()
        return self._autoscaler.status()

    async def starting(self) -> dict[str, Any] | None:
        await self._ready()
        return self._autoscaler.starting()

    async def families(self) -> list[Metric]:
        await self._ready()
        return self._autoscaler.families()

    async def process(self) -> tuple[str, int]:
        """The node id and process id of this actor."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    async def renew(self) -> None:
        """Begin to replace every replica."""
        await self._ready()
        self._autoscaler.renew()


def start_dispatcher(settings: Settings, pool: Pool) -> Any:
    """Start the pool's dispatcher and return its actor handle."""
    actor = ray.remote(DispatcherActor).options(
        name=dispatcher_name(pool.name),
        namespace=settings.ray_namespace,
        num_cpus=0,
        resources=ON_THE_HEAD,
        max_restarts=-1,
        max_concurrency=10_000,
    )
    return actor.remote(seal(settings), pool)


class _NoDispatcher(Exception):
    """The dispatcher's actor does not exist or does not answer."""


class _DispatcherClient:
    """A client of one pool's dispatcher that survives the dispatcher's restarts."""

    def __init__(self, settings: Settings, pool: str) -> None:
        self._namespace = settings.ray_namespace
        self._key = wire_key(settings)
        self._pool = pool
        self._actor: Any = None
        self._wire: Wire | None = None

    async def _find(self) -> Any:
        if self._actor is None:
            try:
                self._actor = await asyncio.to_thread(
                    ray.get_actor, dispatcher_name(self._pool), self._namespace
                )
            except ValueError:
                raise _NoDispatcher from None
        return self._actor

    async def _open(self) -> Wire:
        if self._wire is None:
            address = await (await self._find()).address.remote()
            if self._wire is None or self._wire.address != address:
                self._wire = Wire(address, self._key)
        return self._wire

    async def submit(self, submission: Submission) -> GenerationResult:
        """Submit a request; submit again when the dispatcher dies, with the time that is left."""
        deadline = time.monotonic() + submission.timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            wire = None
            try:
                # The dispatcher enforces the deadline itself, unless it hangs.
                async with asyncio.timeout(left_s + _GRACE_S):
                    wire = await self._open()
                    attempt = replace(submission, timeout_s=left_s)
                    return thrown(await wire.call("submit", attempt))  # type: ignore[no-any-return]
            except RemoteFailed as error:
                raise GenerationFailed(f"the dispatcher failed: {error}") from None
            except (RayActorError, WireError, _NoDispatcher, TimeoutError):
                self._actor = None
                if self._wire is wire:
                    self._wire = None
                await asyncio.sleep(_RETRY_S)
        raise DeadlineExceeded("the dispatcher did not restart before the deadline")

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call the actor. Raises _NoDispatcher while it is down; the call may be repeated."""
        try:
            async with asyncio.timeout(_CALL_TIMEOUTS_S.get(method, _CALL_S)):
                return await getattr(await self._find(), method).remote(*arguments)
        except (RayActorError, TimeoutError):
            self._actor = None
            raise _NoDispatcher from None


class ClusterBackend:
    """A :class:`~serving.generation.service.GenerationBackend` over the dispatchers of all pools.

    Submissions survive a dispatcher's restart; other calls skip a dispatcher that does not answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._pools = {pool.name: pool for pool in settings.resolved_pools}
        self._clients = {name: _DispatcherClient(settings, name) for name in self._pools}

    async def submit(self, submission: Submission) -> GenerationResult:
        return await self._client(submission.pool).submit(submission)

    def _client(self, pool: str) -> _DispatcherClient:
        return self._clients[pool or next(iter(self._clients))]

    async def _ask_all(self, method: str, *arguments: Any) -> dict[str, Any]:
        """The answers by pool, of the dispatchers that answer."""

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
        for residencies in (await self._ask_all("residency", list(keys))).values():
            for key, residency in residencies.items():
                known = merged.get(key, Residency((), {}))
                merged[key] = Residency(
                    known.replicas + residency.replicas, {**known.nodes, **residency.nodes}
                )
        return merged

    async def hold(self, keys: Collection[str]) -> None:
        await self._ask_all("hold", set(keys))

    async def status(self) -> dict[str, Any]:
        """The totals of all dispatchers, and the status of each pool."""
        statuses = await self._ask_all("status")
        return {
            "waiting": sum(status["waiting"] for status in statuses.values()),
            "replicas": [replica for status in statuses.values() for replica in status["replicas"]],
            "pools": {
                name: {k: v for k, v in status.items() if k != "replicas"}
                for name, status in statuses.items()
            },
        }

    async def families(self) -> list[Metric]:
        return together((await self._ask_all("families")).values())

    async def starting(self, pool: str) -> Mapping[str, Any] | None:
        try:
            progress: Mapping[str, Any] | None = await self._client(pool).ask("starting")
        except _NoDispatcher:
            return None
        return progress

    async def pools(self) -> list[dict[str, Any]]:
        """The status of every pool; only its configuration if its dispatcher does not answer."""
        statuses = await self._ask_all("pool")
        return [statuses.get(name) or {**asdict(pool)} for name, pool in self._pools.items()]
