"""The dispatcher as a Ray actor, and the gateways' way to it.

Requests come by the wire, everything else as calls of the actor. When it dies Ray starts it
anew, with an empty waiting room; the gateways submit again, under the same request ids.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import ray
from ray.exceptions import RayActorError

from assets.content import Blob
from router.admission import QueueLimits
from serving.cluster.outcome import caught, thrown
from serving.cluster.slots import DISPATCHER, SlotClient, slot_name, wire_key
from serving.cluster.wire import RemoteFailed, Wire, WireError, WireServer
from serving.dispatcher import Dispatcher, Submission
from serving.drawing import Drawing, Guidance, Residency
from serving.errors import DeadlineExceeded, DrawingFailed
from serving.settings import Settings

_RETRY_S = 0.2


class DispatcherActor:
    """Runs on one event loop; every method is asynchronous and short but ``submit``."""

    def __init__(self, settings: Settings) -> None:
        limits = QueueLimits(settings.queue_per_tenant, settings.queue_total)
        key = wire_key(settings)
        clients = [SlotClient(slot_name(index), key) for index in range(settings.replicas)]
        self._dispatcher = Dispatcher(clients, limits)
        self._wire = WireServer({"submit": self._submit}, key)
        self._address = ""
        self._started = False

    async def _ready(self) -> Dispatcher:
        if not self._started:
            self._started = True
            self._dispatcher.start()
        return self._dispatcher

    async def _submit(self, submission: Submission) -> Any:
        dispatcher = await self._ready()
        return await caught(dispatcher.submit(submission))

    async def address(self) -> str:
        """Where requests are taken."""
        if not self._address:
            self._address = await self._wire.start(ray.util.get_node_ip_address())
        return self._address

    async def resident(self) -> frozenset[str]:
        return (await self._ready()).resident()

    async def forget(self, keys: Collection[str]) -> None:
        await (await self._ready()).forget(keys)

    async def warm(self, blobs: Sequence[Blob]) -> dict[str, str]:
        return await (await self._ready()).warm(blobs)

    async def residency(self, keys: Collection[str]) -> dict[str, Residency]:
        return (await self._ready()).residency(keys)

    async def guidance(self) -> Guidance:
        return (await self._ready()).guidance()

    async def hold(self, keys: Collection[str]) -> None:
        (await self._ready()).hold(keys)

    async def status(self) -> dict[str, Any]:
        return (await self._ready()).status()


def start_dispatcher(settings: Settings) -> Any:
    """The one dispatcher of the pool."""
    actor = ray.remote(DispatcherActor).options(
        name=DISPATCHER,
        namespace=settings.ray_namespace,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=10_000,
    )
    return actor.remote(settings)


class _NoDispatcher(Exception):
    """Ray knows no such actor: it is not there yet, or not any more."""


class ClusterDrawer:
    """A :class:`~serving.platform.Drawer` that outlives the dispatcher."""

    def __init__(self, settings: Settings) -> None:
        self._namespace = settings.ray_namespace
        self._key = wire_key(settings)
        self._actor: Any = None
        self._wire: Wire | None = None

    async def _find(self) -> Any:
        if self._actor is None:
            try:
                self._actor = await asyncio.to_thread(ray.get_actor, DISPATCHER, self._namespace)
            except ValueError:
                raise _NoDispatcher from None
        return self._actor

    async def _line(self) -> Wire:
        """To the dispatcher that is there now."""
        if self._wire is None:
            address = await (await self._find()).address.remote()
            if self._wire is None or self._wire.address != address:
                self._wire = Wire(address, self._key)
        return self._wire

    async def submit(self, submission: Submission) -> Drawing:
        deadline = time.monotonic() + submission.timeout_s
        while True:
            wire = None
            try:
                wire = await self._line()
                return thrown(await wire.call("submit", submission))  # type: ignore[no-any-return]
            except RemoteFailed as error:
                raise DrawingFailed(f"the dispatcher failed: {error}") from None
            except (RayActorError, WireError, _NoDispatcher):
                self._actor = None
                if self._wire is wire:
                    self._wire = None
                if time.monotonic() > deadline:
                    raise DeadlineExceeded("the dispatcher did not come back in time") from None
                await asyncio.sleep(_RETRY_S)

    async def resident(self) -> frozenset[str]:
        """Nothing is known of where nobody dispatches; whoever asks will ask again."""
        try:
            return cast("frozenset[str]", await (await self._find()).resident.remote())
        except (RayActorError, _NoDispatcher):
            self._actor = None
            return frozenset()

    async def forget(self, keys: Collection[str]) -> None:
        try:
            await (await self._find()).forget.remote(set(keys))
        except (RayActorError, _NoDispatcher):
            self._actor = None

    async def warm(self, blobs: Sequence[Blob]) -> Mapping[str, str]:
        try:
            return cast("dict[str, str]", await (await self._find()).warm.remote(blobs))
        except (RayActorError, _NoDispatcher):
            self._actor = None
            return {}

    async def residency(self, keys: Collection[str]) -> Mapping[str, Residency]:
        try:
            found = await (await self._find()).residency.remote(list(keys))
            return cast("dict[str, Residency]", found)
        except (RayActorError, _NoDispatcher):
            self._actor = None
            return {}

    async def hold(self, keys: Collection[str]) -> None:
        """A dispatcher that is not there is told the next time."""
        try:
            await (await self._find()).hold.remote(set(keys))
        except (RayActorError, _NoDispatcher):
            self._actor = None

    async def status(self) -> Any:
        return await (await self._find()).status.remote()
