"""The dispatcher as a Ray actor, and the gateways' way to it.

Requests come by the wire, everything else as calls of the actor. When it dies Ray starts it
anew, with an empty waiting room; the gateways submit again, under the same request ids.
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
#: For an answer that is on its way when the time is over.
_GRACE_S = 5.0
#: For what the dispatcher knows, and for what it asks its replicas to do.
_SHORT_S = 10.0
_PATIENCE_S = {"warm": WARM_S + _SHORT_S, "forget": PATIENCE_S + _SHORT_S}
_SILENT = object()


class DispatcherActor:
    """Of one pool, with the keeper of its size. Runs on one event loop; every method is
    asynchronous and short but ``submit``."""

    def __init__(self, sealed: SealedSettings, pool: Pool) -> None:
        keep_private()
        settings = sealed.open()
        configure(settings.log_format, settings.log_level)
        key = wire_key(settings)
        limits = QueueLimits(settings.queue_per_tenant, settings.queue_total)
        self._dispatcher = Dispatcher([], limits, pool=pool.name)
        self._keeper = Autoscaler(pool, self._dispatcher, ServeReplicaLauncher(settings, pool))
        self._wire = WireServer({"submit": self._submit}, key)
        self._address = ""
        self._keeping: asyncio.Task[None] | None = None

    async def _ready(self) -> Dispatcher:
        if self._keeping is None:
            self._dispatcher.start()
            self._keeping = asyncio.create_task(self._keeper.run())
        return self._dispatcher

    async def _submit(self, submission: Submission) -> Any:
        dispatcher = await self._ready()
        return await caught(dispatcher.submit(submission))

    async def address(self) -> str:
        """Where requests are taken."""
        await self._ready()
        if not self._address:
            self._address = await self._wire.start(ray.util.get_node_ip_address())
        return self._address

    async def told(self, name: str, phase: Phase, at_s: float) -> None:
        """By a replica that starts."""
        self._keeper.told(name, phase, at_s)

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
        return self._keeper.status()

    async def starting(self) -> dict[str, Any] | None:
        await self._ready()
        return self._keeper.starting()

    async def families(self) -> list[Metric]:
        await self._ready()
        return self._keeper.families()

    async def process(self) -> tuple[str, int]:
        """Which it is: node and process."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    async def renew(self) -> None:
        """Begin to replace every replica."""
        await self._ready()
        self._keeper.renew()


def start_dispatcher(settings: Settings, pool: Pool) -> Any:
    """The one dispatcher of the pool."""
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
    """Ray knows no such actor: it is not there yet, or not any more."""


class _Line:
    """To one pool's dispatcher, which may die and come back."""

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
        """Asks again when the dispatcher dies; the time that has passed is not given twice."""
        deadline = time.monotonic() + submission.timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            wire = None
            try:
                # The dispatcher says itself that it is too late, unless it hangs.
                async with asyncio.timeout(left_s + _GRACE_S):
                    wire = await self._open()
                    asked = replace(submission, timeout_s=left_s)
                    return thrown(await wire.call("submit", asked))  # type: ignore[no-any-return]
            except RemoteFailed as error:
                raise GenerationFailed(f"the dispatcher failed: {error}") from None
            except (RayActorError, WireError, _NoDispatcher, TimeoutError):
                self._actor = None
                if self._wire is wire:
                    self._wire = None
                await asyncio.sleep(_RETRY_S)
        raise DeadlineExceeded("the dispatcher did not come back in time")

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Raises _NoDispatcher when it is not there; it will be, and can be asked again."""
        try:
            async with asyncio.timeout(_PATIENCE_S.get(method, _SHORT_S)):
                return await getattr(await self._find(), method).remote(*arguments)
        except (RayActorError, TimeoutError):
            self._actor = None
            raise _NoDispatcher from None


class ClusterBackend:
    """A :class:`~serving.generation.service.GenerationBackend` over the dispatchers of all pools.
    It outlives them: a call to a dispatcher that is absent is repeated in time."""

    def __init__(self, settings: Settings) -> None:
        self._pools = {pool.name: pool for pool in settings.resolved_pools}
        self._lines = {name: _Line(settings, name) for name in self._pools}

    async def submit(self, submission: Submission) -> GenerationResult:
        return await self._line(submission.pool).submit(submission)

    def _line(self, pool: str) -> _Line:
        return self._lines[pool or next(iter(self._lines))]

    async def _ask_all(self, method: str, *arguments: Any) -> dict[str, Any]:
        """What each that is there says."""

        async def ask(name: str) -> tuple[str, Any]:
            try:
                return name, await self._lines[name].ask(method, *arguments)
            except _NoDispatcher:
                return name, _SILENT

        answers = await asyncio.gather(*map(ask, self._lines))
        return {name: answer for name, answer in answers if answer is not _SILENT}

    async def resident(self) -> frozenset[str]:
        return frozenset[str]().union(*(await self._ask_all("resident")).values())

    async def forget(self, keys: Collection[str]) -> None:
        await self._ask_all("forget", set(keys))

    async def warm(self, blobs: Sequence[Blob]) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for tiers in (await self._ask_all("warm", blobs)).values():
            found |= tiers
        return found

    async def residency(self, keys: Collection[str]) -> Mapping[str, Residency]:
        found: dict[str, Residency] = {}
        for places in (await self._ask_all("residency", list(keys))).values():
            for key, there in places.items():
                known = found.get(key, Residency((), {}))
                found[key] = Residency(
                    known.replicas + there.replicas, {**known.nodes, **there.nodes}
                )
        return found

    async def hold(self, keys: Collection[str]) -> None:
        await self._ask_all("hold", set(keys))

    async def status(self) -> dict[str, Any]:
        """All dispatchers as one, and each pool's own."""
        each = await self._ask_all("status")
        return {
            "waiting": sum(one["waiting"] for one in each.values()),
            "replicas": [replica for one in each.values() for replica in one["replicas"]],
            "pools": {
                name: {k: v for k, v in one.items() if k != "replicas"}
                for name, one in each.items()
            },
        }

    async def families(self) -> list[Metric]:
        return together((await self._ask_all("families")).values())

    async def starting(self, pool: str) -> Mapping[str, Any] | None:
        try:
            found: Mapping[str, Any] | None = await self._line(pool).ask("starting")
        except _NoDispatcher:
            return None
        return found

    async def pools(self) -> list[dict[str, Any]]:
        """Every pool; of one whose dispatcher is not there, its configuration."""
        there = await self._ask_all("pool")
        return [there.get(name) or {**asdict(pool)} for name, pool in self._pools.items()]
