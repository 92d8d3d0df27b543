"""The use cases of the door: generate, now or later; no framework, no Ray, no torch.

Each method is a request's way from an authenticated principal to an answer. The
rest of the library's verbs need nothing more than the library itself.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from prometheus_client.metrics_core import Metric

from assets.asset import Asset
from assets.content import Blob
from assets.failpoint import reach
from assets.ids import ulid
from assets.library.library import Library
from assets.library.resolve import BASE_NAME, AssetSelection, Resolved
from assets.principal import Principal
from serving.errors import Blaming, InvalidRequest, ServingError
from serving.generation.contract import (
    GenerationResult,
    GenerationTask,
    ImageEncoding,
    Residency,
    Sampler,
)
from serving.generation.prompt_syntax import unserved_syntax
from serving.generation.sizes import Size, image_size
from serving.generation.submission import Submission
from serving.logs import note
from serving.tenants.meter import Charge, Spent

log = logging.getLogger(__name__)

MAX_SEED = 2**32 - 1


#: Beyond its deadline, until a reservation is taken for one whose gateway died.
_SETTLING_S = 60.0


class Accounts(Protocol):
    """Where a request's cost is reserved before it waits, and settled once it is drawn."""

    def reserve(self, charge: Charge, expires_s: float) -> None:
        """Raises BudgetExceeded."""

    def settle(self, spent: Spent) -> None: ...

    def release(self, charge_id: str) -> None: ...

    def attempted(
        self, charge: Charge, request_id: str, engine_s: float, details: Mapping[str, Any]
    ) -> None:
        """Charge engine time of which no image came."""


class GenerationBackend(Protocol):
    """Whatever draws: a dispatcher in this process, or the cluster's."""

    async def submit(self, submission: Submission) -> GenerationResult: ...

    async def resident(self) -> frozenset[str]:
        """The content keys of what lies in any tier."""

    async def forget(self, keys: Collection[str]) -> None:
        """Drop what nobody may ask for any more."""

    async def warm(self, blobs: Sequence[Blob]) -> Mapping[str, str]:
        """Bring blobs up on every node; by replica, the tier on which they were found."""

    async def residency(self, keys: Collection[str]) -> Mapping[str, Residency]:
        """Where each of these content keys lies."""

    async def hold(self, keys: Collection[str]) -> None:
        """Pin exactly these on every node, from now on."""

    async def pools(self) -> Sequence[Mapping[str, Any]]:
        """Every pool of GPUs, for people and scripts."""

    async def starting(self, pool: str) -> Mapping[str, Any] | None:
        """How far a pool (empty: the first) is in waking up; None when it is awake, or asleep."""

    async def families(self) -> Sequence[Metric]:
        """What all pools have done and are doing, for Prometheus."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A generation as a client orders it, checked but not resolved. One seed an image."""

    prompt: str
    seeds: tuple[int, ...]
    wanted: AssetSelection = field(default_factory=AssetSelection)
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    width: int | None = None
    height: int | None = None
    sampler: Sampler = "DDIM"
    steps: int = 30
    cfg_scale: float = 12.0
    encoding: ImageEncoding = "jpeg"
    #: Among the requests of one's own organisation, the higher goes first.
    priority: int = 0
    #: The pool of GPUs by its name or its kind; empty for the tenant's own.
    gpu: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer; ``names`` says under which name the request knew each content key."""

    request_id: str
    result: GenerationResult
    seeds: tuple[int, ...]
    size: Size
    names: Mapping[str, str]
    spent: Spent


@dataclass(frozen=True, slots=True)
class AssetResidency:
    """Where each part of an asset lies, by content key; a key that is missing lies nowhere."""

    asset: Asset
    places: Mapping[str, Residency]


@dataclass(frozen=True, slots=True)
class _Resolved:
    """An order whose names are content by now."""

    request: GenerationTask
    size: Size
    resolved: Resolved
    priority: int
    pool: str
    warnings: tuple[str, ...]


class Platform:
    def __init__(
        self,
        library: Library,
        backend: GenerationBackend,
        accounts: Accounts,
        native_size: int,
        timeout_s: float,
        pools: Mapping[str, str],
    ) -> None:
        """``pools`` are the pools of GPUs by what a request may call them."""
        self.library = library
        self._backend = backend
        self._accounts = accounts
        self.native_size = native_size
        self.timeout_s = timeout_s
        self._pools = pools

    async def generate(
        self, principal: Principal, order: GenerationRequest, charge_id: str | None = None
    ) -> Generation:
        """Resolve, reserve, wait, draw. What it costs stays reserved: the caller settles it once
        the answer is sent, or releases it. What is not answered is not charged, and what has
        the same ``charge_id`` is charged once.

        Raises:
            AssetError about a reference, InvalidRequest about a field, BudgetExceeded, Refused,
            DeadlineExceeded, DrawingFailed, OutOfMemory, Quarantined, TierError.
        """
        ready = await self._resolve(principal, order)
        charge = _charge(charge_id or ready.request.id, principal, ready)
        if principal.plan.gpu_s_per_month is not None:
            await asyncio.to_thread(self._accounts.reserve, charge, self.timeout_s + _SETTLING_S)
        reach("generate.reserved")
        try:
            generated = await self._generate(ready, charge)
            reach("generate.drawn")
        except BaseException:
            await asyncio.to_thread(self._accounts.release, charge.id)
            raise
        return generated

    async def settle(self, generated: Generation) -> None:
        """Its answer was sent."""
        reach("generate.answered")
        for delay_s in (0.1, 1.0, 5.0, None):
            try:
                await asyncio.to_thread(self._accounts.settle, generated.spent)
                break
            except Exception:  # a busy database; the reservation lasts as long
                if delay_s is None:
                    raise
                log.warning("%s could not be settled; trying again", generated.request_id)
                await asyncio.sleep(delay_s)
        reach("generate.settled")

    async def release(self, generated: Generation) -> None:
        """Its answer cannot be sent."""
        await asyncio.to_thread(self._accounts.release, generated.spent.charge.id)

    async def generate_charged(
        self, principal: Principal, order: GenerationRequest, charge_id: str
    ) -> Generation:
        """``generate`` for whoever reserves and settles by itself."""
        ready = await self._resolve(principal, order)
        return await self._generate(ready, _charge(charge_id, principal, ready))

    async def warm(self, principal: Principal, reference: str) -> Mapping[str, str]:
        """Bring an asset up to host RAM on every node; where each replica found it.

        Raises:
            AssetNotFound, AssetNotReady.
        """
        asset = await asyncio.to_thread(self.library.usable, principal, reference)
        return await self._backend.warm(tuple(asset.parts.values()))

    async def residency(self, principal: Principal, reference: str) -> AssetResidency:
        """Where the parts of an asset lie.

        Raises:
            AssetNotFound, AssetNotReady.
        """
        asset = await asyncio.to_thread(self.library.usable, principal, reference)
        keys = [blob.key for blob in asset.parts.values()]
        return AssetResidency(asset, await self._backend.residency(keys))

    async def hold(self, keys: Collection[str]) -> None:
        """Have every tier keep exactly these content keys, where it has them."""
        await self._backend.hold(keys)

    async def forget_dead(self, among: Collection[str] | None = None) -> int:
        """Have every tier drop what no live asset refers to; how many content keys that were.
        ``among`` are those that have just lost an asset; without it everything is looked at."""
        keys = await self._backend.resident() if among is None else among
        dead = await asyncio.to_thread(self.library.dead, keys)
        if dead:
            await self._backend.forget(dead)
        return len(dead)

    async def check(self, principal: Principal, order: GenerationRequest) -> tuple[float, str]:
        """The work of an order and its pool; raises now what ``generate`` would raise about it."""
        ready = await self._resolve(principal, order)
        return ready.request.work, ready.pool

    async def pools(self) -> Sequence[Mapping[str, Any]]:
        """Every pool of GPUs: its configuration, what waits, each replica and how far it is."""
        return await self._backend.pools()

    async def starting(self, pool: str) -> Mapping[str, Any] | None:
        """What requests to a pool (empty: the first) wait for while it wakes up."""
        return await self._backend.starting(pool)

    async def families(self) -> Sequence[Metric]:
        """For Prometheus."""
        return await self._backend.families()

    def _pool(self, principal: Principal, order: GenerationRequest) -> str:
        wanted = order.gpu or principal.gpu
        if not wanted:
            return ""
        if wanted not in self._pools:
            whose = "" if order.gpu else " (your organisation's default)"
            there = ", ".join(self._pools)
            raise InvalidRequest("gpu", f"there is no GPU {wanted!r}{whose}; there are {there}")
        return self._pools[wanted]

    async def _resolve(self, principal: Principal, order: GenerationRequest) -> _Resolved:
        most = principal.plan.concurrent_pictures
        if most is not None and len(order.seeds) > most:
            raise InvalidRequest("num_images", f"your plan allows {most} pictures at a time")
        pool = self._pool(principal, order)
        size = image_size(order.width, order.height, self.native_size)
        resolved = await asyncio.to_thread(self.library.resolve, principal, order.wanted)
        request = GenerationTask(
            id="req_" + ulid(),
            recipe=resolved.recipe,
            prompt=order.prompt,
            prompt_2=order.prompt_2,
            negative_prompt=order.negative_prompt,
            negative_prompt_2=order.negative_prompt_2,
            width=size.width,
            height=size.height,
            seeds=order.seeds,
            sampler=order.sampler,
            steps=order.steps,
            cfg_scale=order.cfg_scale,
            encoding=order.encoding,
            tenant_id=principal.tenant_id,
        )
        prompts = (order.prompt, order.prompt_2, order.negative_prompt, order.negative_prompt_2)
        warnings = (*resolved.warnings, *unserved_syntax(*prompts))
        return _Resolved(request, size, resolved, order.priority, pool, warnings)

    async def _count(self, charge: Charge, request: GenerationTask, error: ServingError) -> None:
        details = {"steps": request.steps, "why": type(error).__name__}
        try:
            await asyncio.to_thread(
                self._accounts.attempted, charge, request.id, error.engine_s, details
            )
        except Exception:  # its own error says more
            log.exception("%.1f engine seconds of %s were not counted", error.engine_s, request.id)

    async def _generate(self, ready: _Resolved, charge: Charge) -> Generation:
        request, names = ready.request, ready.resolved.names
        principal = charge.principal
        note(request=request.id, tenant=principal.tenant_id)
        submission = Submission(
            request,
            principal.queue_id,
            principal.weight,
            self.timeout_s,
            named=frozenset(key for key, name in names.items() if name != BASE_NAME),
            max_concurrent_images=principal.plan.concurrent_pictures,
            priority=ready.priority,
            pool=ready.pool,
            plan=principal.plan.name,
        )
        try:
            result = await self._backend.submit(submission)
        except ServingError as error:
            if error.engine_s:
                await self._count(charge, request, error)
            raise error.named(names) if isinstance(error, Blaming) else error from None
        result = replace(result, warnings=(*ready.warnings, *result.warnings))
        timings = {name: round(ms, 1) for name, ms in asdict(result.timings).items()}
        log.info("drawn by %s", result.replica, extra=timings)
        if ready.resolved.asset_ids:
            try:
                await asyncio.to_thread(self.library.used, ready.resolved)
            except Exception:  # a count that is missed costs nobody a picture
                log.exception("the uses of %s were not counted", request.id)
        details = {
            "steps": request.steps,
            "width": request.width,
            "height": request.height,
            "sampler": request.sampler,
        }
        spent = Spent(charge, result.timings.engine_s, len(request.seeds), details)
        return Generation(request.id, result, request.seeds, ready.size, names, spent)


def _charge(charge_id: str, principal: Principal, ready: _Resolved) -> Charge:
    return Charge(charge_id, principal, ready.request.work, ready.pool)


def fixed_seeds(given: int | list[int | None] | None, count: int) -> tuple[int, ...]:
    """One seed an image: a single one counts up; what is missing is drawn by lot."""
    if isinstance(given, int):
        return tuple((given + index) % (MAX_SEED + 1) for index in range(count))
    listed = list(given or [])[:count]
    listed += [None] * (count - len(listed))
    return tuple(secrets.randbelow(MAX_SEED + 1) if seed is None else seed for seed in listed)
