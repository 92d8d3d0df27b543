"""The generation service: from an authenticated request to images and a receipt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from msgspec import structs

from assets.failpoint import reach
from assets.library.library import Library
from assets.library.resolve import BASE_NAME
from assets.principal import Principal
from assets.sql.busy import persisted
from serving.errors import AssetFault, ServingError
from serving.generation.accounts import Accounts
from serving.generation.backend import Generator
from serving.generation.choices import of_image
from serving.generation.content_credentials import ContentCredentials
from serving.generation.content_gate import ContentGate
from serving.generation.contract import (
    GenerationRequest,
    GenerationResult,
    GenerationTask,
)
from serving.generation.pool_choice import PoolChoice
from serving.generation.resolution import RequestResolver, ResolvedRequest
from serving.generation.sizes import ImageSizes, Size
from serving.generation.status import PoolEstimate
from serving.generation.submission import Submission
from serving.logs import note
from serving.tenants.meter import Charge, Settlement

log = logging.getLogger(__name__)

#: How long a reservation outlives its deadline; then its gateway counts as dead.
_SETTLING_S = 60.0


@dataclass(frozen=True, slots=True)
class Generation:
    """``names`` maps content keys to the names in the request."""

    request_id: str
    result: GenerationResult
    seeds: tuple[int, ...]
    size: Size
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RequestEstimate:
    """``pool``: None while it sleeps; ``gpu_s``: engine seconds that would be reserved."""

    request: ResolvedRequest
    pool: PoolEstimate | None
    gpu_s: float | None


@dataclass(frozen=True, slots=True)
class NewGeneration(Generation):
    """A generation to be settled, or released."""

    spent: Settlement


@dataclass(frozen=True, slots=True)
class RunningGeneration:
    """A generation to be followed by ``id`` in its ``pool``. A cancelled ``task`` releases the
    reservation; otherwise the caller settles or releases."""

    id: str
    pool: str
    task: asyncio.Task[NewGeneration]


class GenerationService:
    def __init__(
        self,
        library: Library,
        generator: Generator,
        accounts: Accounts,
        sizes: ImageSizes,
        timeout_s: float,
        pools: PoolChoice,
        gate: ContentGate | None = None,
        credentials: ContentCredentials | None = None,
    ) -> None:
        self.library = library
        self._generator = generator
        self._accounts = accounts
        self.timeout_s = timeout_s
        self.pools = pools
        self.gate = gate or ContentGate()
        self._credentials = credentials
        #: Of its own: a time-stamping authority may be slow.
        self._signer = ThreadPoolExecutor(1, thread_name_prefix="sign")
        self._resolver = RequestResolver(library, sizes, pools)

    async def generate(
        self, principal: Principal, request: GenerationRequest, charge_id: str | None = None
    ) -> NewGeneration:
        """Reserve the cost, queue the request and await the result.

        The caller settles the reservation after the response, or releases it. Requests with
        equal ``charge_id`` are charged once.

        Raises:
            AssetError: a reference is invalid.
            InvalidRequest: a field is invalid.
            PolicyViolation, PolicyUnavailable: of the operator's content policy.
            BudgetExceeded, Refused, DeadlineExceeded, GenerationFailed, OutOfMemory, Quarantined,
            TierError.
        """
        resolution = await self._admitted(principal, request)
        charge = _charge(charge_id or resolution.task.id, principal, resolution)
        return await self._generate_reserved(resolution, charge)

    async def start(self, principal: Principal, request: GenerationRequest) -> RunningGeneration:
        """Like :meth:`generate`, without waiting for the result; errors of the request's own are
        raised here."""
        resolution = await self._admitted(principal, request)
        task = resolution.task
        charge = _charge(task.id, principal, resolution)
        generating = asyncio.create_task(self._generate_reserved(resolution, charge))
        return RunningGeneration(task.id, task.pool, generating)

    async def _generate_reserved(
        self, resolution: ResolvedRequest, charge: Charge
    ) -> NewGeneration:
        if charge.principal.plan.gpu_s_per_month is not None:
            await asyncio.to_thread(self._accounts.reserve, charge, self.timeout_s + _SETTLING_S)
        reach("generate.reserved")
        try:
            generated = await self._generate(resolution, charge)
            reach("generate.drawn")
        except BaseException:
            await asyncio.to_thread(self._accounts.release, charge.id)
            raise
        return generated

    async def estimate(self, principal: Principal, request: GenerationRequest) -> RequestEstimate:
        """Tell what a request would take now. Raises as :meth:`generate`, without its policy."""
        resolution = await self._resolver.resolve(principal, request)
        charge = _charge(resolution.task.id, principal, resolution)
        pool, gpu_s = await asyncio.gather(
            self._generator.estimate(self._submission(resolution, charge)),
            asyncio.to_thread(self._accounts.estimate, charge),
        )
        return RequestEstimate(resolution, pool, gpu_s)

    async def settle(self, generated: NewGeneration) -> None:
        """Charge a generation after its response was sent."""
        reach("generate.answered")
        await persisted(self._accounts.settle, generated.spent)
        reach("generate.settled")

    async def release(self, generated: NewGeneration) -> None:
        """Release the reservation of an unsent response."""
        await asyncio.to_thread(self._accounts.release, generated.spent.charge.id)

    async def generate_charged(
        self, principal: Principal, request: GenerationRequest, charge_id: str, job_id: str
    ) -> NewGeneration:
        """Like :meth:`generate`, for a job, which reserves and settles itself."""
        resolution = await self._admitted(principal, request)
        charge = _charge(charge_id, principal, resolution)
        return await self._generate(resolution, charge, job_id)

    async def check(self, principal: Principal, request: GenerationRequest) -> tuple[float, str]:
        """Validate as :meth:`generate` does; return the work and the pool."""
        resolution = await self._admitted(principal, request)
        return resolution.task.work, resolution.task.pool

    async def _admitted(self, principal: Principal, request: GenerationRequest) -> ResolvedRequest:
        """Resolve a request and ask the content policy."""
        resolution = await self._resolver.resolve(principal, request)
        await self.gate.check_prompts(principal, resolution.task)
        return resolution

    def _submission(
        self, resolution: ResolvedRequest, charge: Charge, job_id: str = ""
    ) -> Submission:
        principal, names = charge.principal, resolution.resolved.names
        return Submission(
            resolution.task,
            principal.queue_id,
            principal.weight,
            self.timeout_s,
            named=frozenset(key for key, name in names.items() if name != BASE_NAME),
            max_concurrent_images=principal.plan.concurrent_pictures,
            priority=resolution.priority,
            plan=principal.plan.name,
            job_id=job_id,
            run_id=charge.id,
        )

    async def _charge_attempt(
        self, charge: Charge, task: GenerationTask, error: ServingError
    ) -> None:
        details = {"steps": task.params.steps, "why": type(error).__name__}
        try:
            await asyncio.to_thread(
                self._accounts.attempted, charge, task.id, error.engine_s, details
            )
        except Exception:  # report the generation's own error
            log.exception("%.1f engine seconds of %s were not charged", error.engine_s, task.id)

    async def _generate(
        self, resolution: ResolvedRequest, charge: Charge, job_id: str = ""
    ) -> NewGeneration:
        task, names = resolution.task, resolution.resolved.names
        principal = charge.principal
        note(request=task.id, tenant=principal.tenant_id)
        submission = self._submission(resolution, charge, job_id)
        try:
            result = await self._generator.submit(submission)
        except ServingError as error:
            if error.engine_s:
                await self._charge_attempt(charge, task, error)
            raise error.named(names) if isinstance(error, AssetFault) else error from None
        result = structs.replace(
            result,
            warnings=(*resolution.warnings, *result.warnings),
            hints=resolution.hints,
            prompts=_chosen_prompts(task),
            styles=tuple((style.name, style.version) for style in task.params.styles),
        )
        if self.gate.judges_images(requested=resolution.enable_safety):
            result = await self.gate.screened(principal, task, result)
        if self._credentials is not None:
            signing = partial(_signed, self._credentials, task, result)
            result = await asyncio.get_running_loop().run_in_executor(self._signer, signing)
        timings = {name: round(ms, 1) for name, ms in structs.asdict(result.timings).items()}
        log.info("generated by %s", result.replica, extra=timings)
        if resolution.asset_ids:
            try:
                await asyncio.to_thread(self.library.used, resolution.asset_ids)
            except Exception:  # must not fail the request
                log.exception("asset uses of %s were not counted", task.id)
        details = {
            "steps": task.params.steps,
            "width": task.width,
            "height": task.height,
            "sampler": task.params.sampler,
        }
        kept = len(task.seeds) - result.removed
        gpu_s = result.timings.engine_s * kept / len(task.seeds)
        spent = Settlement(charge, gpu_s, kept, details, withheld=result.removed)
        return NewGeneration(task.id, result, task.seeds, resolution.size, names, spent)


def _signed(
    credentials: ContentCredentials, task: GenerationTask, result: GenerationResult
) -> GenerationResult:
    """Sign the images last. Raises InternalError."""
    encoding = task.params.encoding
    images = tuple(image and credentials.signed(image, encoding) for image in result.images)
    return structs.replace(result, images=images)


def _chosen_prompts(task: GenerationTask) -> tuple[str, ...]:
    if not task.params.dynamic_prompts:
        return ()
    return tuple(of_image(task.params, seed).prompt for seed in task.seeds)


def _charge(charge_id: str, principal: Principal, resolution: ResolvedRequest) -> Charge:
    return Charge(charge_id, principal, resolution.task.work, resolution.task.pool)
