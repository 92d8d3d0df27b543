"""The engine: switches to a recipe and generates. One thread generates; others may prepare.

It computes in float32 on a CPU, in float16 on CUDA (the VAE in bfloat16).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from itertools import product
from typing import TypeVar

import torch

from assets.base_model.manifest import ModelManifest
from assets.content import Blob, Component
from assets.errors import AssetError
from assets.recipe import Recipe
from orchestrator.device_tier import DeviceTier
from orchestrator.errors import TierError
from orchestrator.provision import Provisioner
from serving.engine.compiled import CompiledModule
from serving.engine.decoder import ImageDecoder
from serving.engine.denoise import Denoiser
from serving.engine.device_cache import DeviceCache, Prepared
from serving.engine.graphs import Capture, CudaCapture, StandInCapture
from serving.engine.modules import bind_modules, build_modules
from serving.engine.options import EngineOptions
from serving.engine.prompt_cache import PromptCache
from serving.engine.prompts import PromptEncoder
from serving.engine.rendering import Renderer, settle
from serving.engine.slabs import layouts_of
from serving.engine.text import TextEncoders
from serving.engine.unet import UnetRunner
from serving.engine.values import DeviceValue
from serving.engine.working import WorkingSet, target_weights
from serving.errors import OutOfMemory, ServingError, UnexpectedEngineError
from serving.generation.contract import (
    MAX_BATCH,
    ClusterDirectives,
    GenerationParams,
    GenerationResult,
    GenerationTask,
    Swap,
)
from serving.generation.engine import (
    UNOBSERVED,
    DeviceResidency,
    EncodedImage,
    GenerationObserver,
    Rendered,
    SubmitEncoding,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

_DEFAULTS = EngineOptions()


class Engine:
    """An SDXL engine on one device. Thread-safe: ``prepare`` and ``forget``; generate in one
    thread.

    ``unhealthy`` is why it must stop, or None.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        provisioner: Provisioner | None,
        device: str = "cpu",
        device_budget_bytes: int = 8 << 30,
        name: str = "engine",
        *,
        pristine_budget_bytes: int | None = None,
        options: EngineOptions = _DEFAULTS,
        tier: DeviceTier[DeviceValue] | None = None,
    ) -> None:
        """``pristine_budget_bytes`` moves pristine weights to host memory (pinned on CUDA). Without
        a provisioner ``tier`` must contain every asset."""
        self.name = name
        self.manifest = manifest
        self.device = torch.device(device)
        self.options = options
        self.unhealthy: str | None = None
        self._is_lost = False
        is_cuda = self.device.type == "cuda"
        dtype = torch.float16 if is_cuda else torch.float32
        self._dtypes: dict[Component, torch.dtype] = {
            "unet": dtype,
            "text_encoder": dtype,
            "text_encoder_2": dtype,
            # SDXL's published VAE overflows in float16.
            "vae": torch.bfloat16 if is_cuda else torch.float32,
        }
        layouts = layouts_of(manifest.schema, channels_last=is_cuda)
        self.tier: DeviceTier[DeviceValue] = tier or DeviceTier(
            device_budget_bytes, dropped=lambda value: self.device_cache.keep_spare(value)
        )
        pristine_tier: DeviceTier[DeviceValue] | None = None
        if pristine_budget_bytes is not None:
            pristine_tier = DeviceTier(
                pristine_budget_bytes,
                "pinned",
                dropped=lambda value: self.device_cache.keep_spare(value),
            )
        schema = manifest.schema
        self.device_cache = DeviceCache(
            provisioner, schema, layouts, self.device, self._dtypes, self.tier, pristine_tier
        )
        self._working = WorkingSet(
            layouts, self.device, self._dtypes, staged=pristine_tier is not None
        )
        modules = build_modules(manifest.configs)
        bind_modules(modules, self._working.parameter, self.device)
        self._unet, self._vae = modules["unet"], modules["vae"]
        self.prompts = PromptEncoder(
            TextEncoders(modules["text_encoder"], modules["text_encoder_2"]),
            PromptCache(options.prompt_cache_bytes),
            options.attention,
        )
        if is_cuda:
            torch.backends.cudnn.benchmark = options.cudnn_benchmark
        compiled = compiled_decoder = None
        if options.compile != "off":
            compiled = CompiledModule(self._unet, options)
            if options.compile_vae:
                compiled_decoder = CompiledModule(self._vae.decoder, options)
        self.unet = UnetRunner(
            self._unet,
            compiled=compiled,
            capture=_capture(options, self.device),
            keep_cross_kv=options.keep_cross_kv,
            attention=options.attention,
        )
        channels = int(manifest.configs["unet"]["in_channels"])
        self._denoiser = Denoiser(self.unet, schema.digest, channels, self.device)
        factor = float(manifest.configs["vae"]["scaling_factor"])
        self.decoder = ImageDecoder(
            self._vae, factor, self._dtypes["vae"], self.unet, compiled_decoder, options.attention
        )
        is_exact = not is_cuda and not self.unet.is_faster_when_warm
        self._renderer = Renderer(
            name,
            self.device,
            self.switch_to,
            self.prompts,
            self._denoiser,
            self.decoder,
            max_batch=options.max_batch or (1 if is_exact else MAX_BATCH),
        )
        # Leased for the engine's lifetime: a failed swap switches to the base.
        self._base = self.device_cache.prepare(self.base)
        self.switch_to(self._base)
        self._base_digest = self.digest()

    @property
    def base(self) -> Recipe:
        parts = self.manifest.parts
        return Recipe(parts["unet"], parts["text_encoder"], parts["text_encoder_2"], parts["vae"])

    def digest(self) -> str:
        return self._working.digest()

    def prepare(self, recipe: Recipe, tenant_id: str = "") -> Prepared:
        """Load and lease every value of the recipe.

        Raises:
            TierError, OutOfMemory: no room, or corrupt bytes.
            AssetError: from the object store.
            UnexpectedEngineError: any other error.
            After any error nothing stays leased.
        """
        try:
            return self.device_cache.prepare(recipe, tenant_id)
        except (ServingError, TierError, AssetError):
            raise
        except Exception as error:
            raise self._fail("preparing", error) from error

    def _fail(self, activity: str, error: Exception) -> UnexpectedEngineError:
        """A lost device makes the engine unhealthy."""
        log.exception("the engine failed while %s", activity)
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except Exception as device_error:
                self.unhealthy = f"the device is lost: {device_error}"
                self._is_lost = True
        return UnexpectedEngineError(f"the engine failed: {type(error).__name__}")

    def resident(self) -> Mapping[str, frozenset[str]]:
        return self.device_cache.resident()

    def apply_directives(self, directives: ClusterDirectives) -> None:
        self.device_cache.apply_directives(directives)

    def residency(self) -> DeviceResidency:
        return self.device_cache.residency()

    def forget(self, keys: Collection[str]) -> None:
        """Drop content keys from every cache."""
        self.prompts.forget(keys)
        self.device_cache.forget(keys)

    def warm(self, blobs: Sequence[Blob]) -> str:
        """Fetch into host RAM; return the lowest tier that had any."""
        return self.device_cache.warm(blobs)

    def switch_to(self, prepared: Prepared) -> Swap:
        """Write the recipe into the working weights.

        After an error they are the base's, checked by digest, or the engine is ``unhealthy``; after
        out of memory the next swap rewrites all.
        """
        try:
            return self._write(prepared)
        except torch.OutOfMemoryError:
            raise
        except BaseException:
            self._restore_base()
            raise

    def _write(self, prepared: Prepared) -> Swap:
        recipe = prepared.recipe
        parts = list(recipe.components())
        keys = {component: blob.key for component, blob in parts}
        pristine = {component: prepared.pristine(blob) for component, blob in parts}
        loras = {use.blob.key: prepared.lora(use.blob) for use in recipe.loras}
        uses = [(use, loras[use.blob.key]) for use in recipe.loras]
        return self._working.switch_to(target_weights(keys, uses), pristine, loras)

    def _restore_base(self) -> None:
        try:
            self._write(self._base)
            if self.digest() != self._base_digest:
                self.unhealthy = "the digest of the restored base weights has changed"
        except Exception as error:
            self.unhealthy = f"the base recipe cannot be restored: {error}"

    @torch.inference_mode()
    def warm_up(
        self,
        sizes: Sequence[tuple[int, int]],
        batches: Sequence[int] = (1,),
        guided: Sequence[bool] = (True, False),
    ) -> None:
        """Compile, capture and plan all combinations of ``sizes`` (width, height), ``batches`` (and
        1), ``guided`` and the options' lengths of prompts.

        In the generating thread: cuDNN and attention plan per thread.
        """
        lengths = sorted({1, *self.options.warm_chunks}) if self.unet.is_faster_when_warm else [1]
        prompts = [" BREAK ".join(["warm up"] * chunks) for chunks in lengths]
        with self.unet.warming():
            for width, height in sizes:
                for batch in sorted({1, *batches}):
                    seeds = tuple(range(batch))
                    self._renderer.warmed[width, height] = (batch,)
                    for is_guided, prompt in product(guided, prompts):
                        scale = 7.0 if is_guided else 1.0
                        params = GenerationParams(prompt=prompt, steps=2, cfg_scale=scale)
                        task = GenerationTask(
                            id="warm-up", recipe=self.base, params=params, seeds=seeds,
                            width=width, height=height,
                        )  # fmt: skip
                        self.generate(self._base, task)
                self._renderer.warmed[width, height] = tuple(sorted({1, *batches}, reverse=True))
        if self.unet.graphs:
            count, megabytes = len(self.unet.graphs), self.unet.pool_bytes >> 20
            log.info("%s captured %d graphs in %d MiB", self.name, count, megabytes)

    def generate(
        self,
        prepared: Prepared,
        request: GenerationTask,
        observer: GenerationObserver = UNOBSERVED,
    ) -> GenerationResult:
        """Render and encode here. Raises as :meth:`render`."""
        return self.render(prepared, request, observer, _encode_now).result()

    def render(
        self,
        prepared: Prepared,
        request: GenerationTask,
        observer: GenerationObserver,
        submit: SubmitEncoding,
    ) -> Rendered:
        """Switch to the recipe and generate; encoding, by ``submit``, may outlast the leases.

        Raises:
            Cancelled: at most three steps after the observer asks for it.
            NotFinite: an image is not finite; names the asset at fault.
            OutOfMemory: even after evicting idle values.
            UnexpectedEngineError: any other error.
        """
        try:
            return self._with_room(
                lambda: self._renderer.render(prepared, request, observer, submit)
            )
        except ServingError:
            raise
        except Exception as error:
            raise self._fail(f"generating {request.id}", error) from error
        finally:
            self._settle()

    def _settle(self) -> None:
        """Wait: a load on another stream may overwrite released memory."""
        if not self._is_lost:
            settle(self.device)

    def _with_room(self, work: Callable[[], T]) -> T:
        """If out of memory, evict idle values and retry once."""
        try:
            return work()
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        # Outside the handler: the exception's frames keep tensors alive.
        self.device_cache.make_room()
        try:
            return work()
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            raise OutOfMemory(f"the device has no memory for this generation: {reason}") from None


def _capture(options: EngineOptions, device: torch.device) -> Capture | None:
    if options.graphs == "off" or (options.graphs == "auto" and device.type != "cuda"):
        return None
    return CudaCapture(device) if device.type == "cuda" else StandInCapture()


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Some libraries report it only in text."""
    messages = (
        "unable to find an engine", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory",
    )  # fmt: skip
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in messages)


def _encode_now(work: Callable[[], EncodedImage]) -> Future[EncodedImage]:
    done: Future[EncodedImage] = Future()
    done.set_result(work())
    return done
