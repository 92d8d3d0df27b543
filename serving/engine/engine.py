"""The engine: becomes a recipe and draws. One thread draws; another may prepare.

CPU (float32) and CUDA (float16, the VAE in bfloat16) from the same code.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar, cast

import torch

from assets.content import Blob, Component
from assets.errors import AssetError
from assets.model import ModelManifest
from assets.recipe import Recipe
from orchestrator.device_tier import DeviceTier
from orchestrator.errors import TierError
from orchestrator.provision import Provisioner
from serving.drawing import Drawing, DrawRequest, Guidance, Holding, Swap, Timings
from serving.engine.compiled import Compile, CompiledUnet
from serving.engine.denoise import Denoiser, IsCancelled, Predictor
from serving.engine.diagnosis import blame, blame_vae
from serving.engine.modules import bind_modules, build_modules
from serving.engine.pictures import encode_picture
from serving.engine.shelf import Prepared, Shelf
from serving.engine.slabs import layouts_of
from serving.engine.text import Embeddings, TextEncoders
from serving.engine.values import DeviceValue
from serving.engine.working import WorkingSet, target_of
from serving.errors import EngineBroke, NotFinite, OutOfMemory, ServingError

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Pictures denoised together; more are drawn in turns.
MAX_BATCH = 4


class Engine:
    """One warm SDXL. ``prepare`` may run in any thread; ``draw`` in one only.

    ``unhealthy`` says why this engine must not draw any more, once it is so.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        provisioner: Provisioner,
        device: str = "cpu",
        device_budget_bytes: int = 8 << 30,
        name: str = "engine",
        *,
        pristine_budget_bytes: int | None = None,
        compiling: Compile = "off",
    ) -> None:
        """``pristine_budget_bytes`` keeps pristine weights in (pinned) host memory, under a
        budget of its own, instead of on the device."""
        self.name = name
        self.manifest = manifest
        self.device = torch.device(device)
        self.unhealthy: str | None = None
        fast = self.device.type == "cuda"
        dtype = torch.float16 if fast else torch.float32
        self._dtypes: dict[Component, torch.dtype] = {
            "unet": dtype,
            "text_encoder": dtype,
            "text_encoder_2": dtype,
            # SDXL's published VAE overflows in float16.
            "vae": torch.bfloat16 if fast else torch.float32,
        }
        layouts = layouts_of(manifest.skeleton, channels_last=fast)
        self.tier: DeviceTier[DeviceValue] = DeviceTier(
            device_budget_bytes, dropped=lambda value: self.shelf.keep_spare(value)
        )
        apart: DeviceTier[DeviceValue] | None = None
        if pristine_budget_bytes is not None:
            apart = DeviceTier(
                pristine_budget_bytes,
                "pinned",
                dropped=lambda value: self.shelf.keep_spare(value),
            )
        skeleton = manifest.skeleton
        self.shelf = Shelf(
            provisioner, skeleton, layouts, self.device, self._dtypes, self.tier, apart
        )
        self._working = WorkingSet(layouts, self.device, self._dtypes, staged=apart is not None)
        modules = build_modules(manifest.configs)
        bind_modules(modules, self._working.parameter, self.device)
        self._unet, self._vae = modules["unet"], modules["vae"]
        self._text = TextEncoders(modules["text_encoder"], modules["text_encoder_2"])
        self._compiled = None if compiling == "off" else CompiledUnet(self._unet, compiling)
        predict: Predictor = self._compiled or self._unet
        channels = int(manifest.configs["unet"]["in_channels"])
        self._denoiser = Denoiser(predict, channels, self.device)
        #: (width, height) → how many pictures at once have been compiled.
        self._warmed: dict[tuple[int, int], tuple[int, ...]] = {}
        # Held for good: after a swap that failed the engine must be able to go back to it.
        self._base = self.shelf.prepare(self.base)
        self.become(self._base)
        self._base_digest = self.digest()

    @property
    def base(self) -> Recipe:
        """The recipe of the base model alone."""
        parts = self.manifest.parts
        return Recipe(parts["unet"], parts["text_encoder"], parts["text_encoder_2"], parts["vae"])

    def digest(self) -> str:
        """A digest of the working weights as they are."""
        return self._working.digest()

    def prepare(self, recipe: Recipe, tenant_id: str = "") -> Prepared:
        """Bring every value of the recipe to the device and lease it, for a tenant.

        Raises:
            TierError, OutOfMemory: no room, or corrupt bytes. EngineBroke: something that
            should never happen. In any case nothing stays leased.
        """
        try:
            return self.shelf.prepare(recipe, tenant_id)
        except (ServingError, TierError, AssetError):
            raise
        except Exception as error:
            raise self._broken("preparing", error) from error

    def _broken(self, doing: str, error: Exception) -> EngineBroke:
        """A CUDA error outlives its kernel: then nothing works in this process any more."""
        log.exception("the engine failed while %s", doing)
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except Exception as lost:
                self.unhealthy = f"the device is lost: {lost}"
        return EngineBroke(f"the engine failed: {type(error).__name__}")

    def resident(self) -> Mapping[str, frozenset[str]]:
        """Content keys by tier."""
        return self.shelf.resident()

    def meet(self, guidance: Guidance) -> None:
        """What the dispatcher knows of the cluster."""
        self.shelf.meet(guidance)

    def holding(self) -> Holding:
        """What a request would not have to wait for."""
        return self.shelf.holding()

    def forget(self, keys: Collection[str]) -> None:
        """Of content keys that nobody may ask for any more; any thread."""
        self.shelf.forget(keys)

    def warm(self, blobs: Sequence[Blob]) -> str:
        """Bring blobs up to host RAM; the lowest tier on which one of them was found."""
        return self.shelf.warm(blobs)

    def become(self, prepared: Prepared) -> Swap:
        """Write the recipe into the working weights.

        Whatever it raises, the weights are the base's again afterwards, as the digest
        proves, or the engine is ``unhealthy``. (Out of memory, that waits for the next swap.)
        """
        try:
            return self._write(prepared)
        except torch.OutOfMemoryError:
            raise  # no room for anything now; the next swap writes every weight anew
        except BaseException:
            self._go_back()
            raise

    def _write(self, prepared: Prepared) -> Swap:
        recipe = prepared.recipe
        parts = [(cast(Component, name), blob) for name, blob in recipe.components()]
        keys = {component: blob.key for component, blob in parts}
        pristine = {component: prepared.pristine(blob) for component, blob in parts}
        loras = {use.blob.key: prepared.lora(use.blob) for use in recipe.loras}
        uses = [(use, loras[use.blob.key]) for use in recipe.loras]
        return self._working.become(target_of(keys, uses), pristine, loras)

    def _go_back(self) -> None:
        try:
            self._write(self._base)
            if self.digest() != self._base_digest:
                self.unhealthy = "the base weights are not what they were"
        except Exception as error:
            self.unhealthy = f"the base recipe cannot be restored: {error}"

    @torch.inference_mode()
    def warm_up(self, sizes: Sequence[tuple[int, int]], batches: Sequence[int] = (1,)) -> None:
        """Draw, at each (width, height), ``batches`` many pictures at once: everything that
        a first request would have to wait for, compilation above all."""
        request = DrawRequest(
            "warm-up", self.base, "warm up", 0, 0, seeds=(0,), steps=2, cfg_scale=7.0
        )
        for width, height in sizes:
            for batch in batches:
                sized = replace(request, width=width, height=height, seeds=tuple(range(batch)))
                self._warmed[width, height] = (batch,)
                self.draw(self._base, sized)
            self._warmed[width, height] = tuple(sorted({1, *batches}, reverse=True))
        if self._compiled is not None:
            self._compiled.freeze()

    def draw(
        self, prepared: Prepared, request: DrawRequest, is_cancelled: IsCancelled = lambda: False
    ) -> Drawing:
        """Become the recipe and draw every picture of the request.

        Raises:
            Cancelled: within one step of ``is_cancelled`` turning true.
            NotFinite: the picture is not finite; names the asset at fault.
            OutOfMemory: even after everything idle was evicted.
            EngineBroke: something that should never happen.
        """
        try:
            return self._with_room(lambda: self._draw(prepared, request, is_cancelled))
        except ServingError:
            raise
        except Exception as error:
            raise self._broken(f"drawing {request.id}", error) from error
        finally:
            self._settle()

    def _settle(self) -> None:
        """Until the device has done what it was told: leases end after this, and what they
        held may then be overwritten by an arrival on another stream."""
        if self.device.type == "cuda" and self.unhealthy is None:
            with suppress(RuntimeError):  # of a device that is lost, as was said already
                torch.cuda.current_stream(self.device).synchronize()

    def _with_room(self, work: Callable[[], T]) -> T:
        """``work``, once more with everything idle evicted when the device's memory ran out."""
        try:
            return work()
        except torch.OutOfMemoryError:
            pass  # and let go of the frames that the error came through: they hold tensors
        self.shelf.make_room()
        try:
            return work()
        except torch.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
            raise OutOfMemory(f"the device has no memory for this drawing: {reason}") from None

    @torch.inference_mode()
    def _draw(self, prepared: Prepared, request: DrawRequest, is_cancelled: IsCancelled) -> Drawing:
        clock = _Stopwatch(self.device)
        swap = self.become(prepared)
        swap_ms = clock.lap_ms()
        positive, negative, warnings = self._encode(prepared, request)
        encode_ms = clock.lap_ms()
        denoise_ms = decode_ms = 0.0
        images: list[bytes] = []
        for seeds in self._in_turns(request):
            steps = self._denoiser.steps(request, seeds, positive, negative, is_cancelled)
            latents = deque(steps, maxlen=1).pop()
            if not torch.isfinite(latents).all():
                raise self._blame(prepared, request, seeds, is_cancelled)
            denoise_ms += clock.lap_ms()
            images += [encode_picture(p, request.encoding) for p in self._decode(prepared, latents)]
            decode_ms += clock.lap_ms()
        return Drawing(
            images=tuple(images),
            replica=self.name,
            found=tuple(prepared.found),
            swap=swap,
            timings=Timings(
                fetch_ms=prepared.fetch_s * 1000,
                swap_ms=swap_ms,
                encode_prompt_ms=encode_ms,
                denoise_ms=denoise_ms,
                decode_ms=decode_ms,
            ),
            matched={
                use.blob.key: prepared.lora(use.blob).matched for use in prepared.recipe.loras
            },
            warnings=tuple(warnings),
        )

    def _in_turns(self, request: DrawRequest) -> Iterator[tuple[int, ...]]:
        """The seeds that are drawn together: as many as were warmed at this size."""
        seeds = request.seeds
        warmed = self._warmed.get((request.width, request.height))
        while seeds:
            count = min(MAX_BATCH, len(seeds))
            if self._compiled is not None and warmed:
                count = next((batch for batch in warmed if batch <= count), 1)
            yield seeds[:count]
            seeds = seeds[count:]

    def _encode(
        self, prepared: Prepared, request: DrawRequest
    ) -> tuple[Embeddings, Embeddings, list[str]]:
        recipe = prepared.recipe
        asked = {use.token: prepared.inversion(use.blob) for use in recipe.inversions}
        inversions = dict(asked)  # what was asked for comes before what came along
        for lora in recipe.loras:
            for word, inversion in prepared.lora(lora.blob).bundled.items():
                inversions.setdefault(word, inversion)
        positive, warnings, seen = self._text.encode(
            {"text_encoder": request.prompt, "text_encoder_2": request.prompt_2 or request.prompt},
            inversions,
        )
        if request.negative_prompt is None and request.negative_prompt_2 is None:
            # SDXL was trained with zeros for "no prompt" (force_zeros_for_empty_prompt).
            negative = Embeddings(
                torch.zeros_like(positive.context), torch.zeros_like(positive.pooled)
            )
        else:
            text = request.negative_prompt or ""
            negative, more, also_seen = self._text.encode(
                {"text_encoder": text, "text_encoder_2": request.negative_prompt_2 or text},
                inversions,
            )
            warnings += [f"negative {warning}" for warning in more]
            seen |= also_seen
        for token in asked.keys() - seen:
            warnings.append(
                f"the trigger word {token!r} is in no prompt: its inversion did nothing"
            )
        return positive, negative, warnings

    def _decode(self, prepared: Prepared, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Pictures of [3, height, width] in -1..1, one after another."""
        dtype = self._dtypes["vae"]
        factor = float(self.manifest.configs["vae"]["scaling_factor"])
        for latent in latents:
            scaled = latent[None] / factor
            decoded: torch.Tensor = self._vae.decode(scaled.to(dtype), return_dict=False)[0][0]
            if not torch.isfinite(decoded).all():
                raise blame_vae(self._vae, prepared.recipe.vae.key, scaled, dtype)
            yield decoded

    def _blame(
        self,
        prepared: Prepared,
        request: DrawRequest,
        seeds: Sequence[int],
        is_cancelled: IsCancelled,
    ) -> NotFinite:
        def breaks_at(recipe: Recipe, within: int | None) -> int | None:
            part = Prepared(recipe, prepared.leases)
            self.become(part)
            positive, negative, _ = self._encode(part, request)
            drawn = self._denoiser.steps(request, seeds, positive, negative, is_cancelled)
            for index, latents in enumerate(drawn, 1):
                if not torch.isfinite(latents).all():
                    return index
                if index == within:
                    break
            return None

        return blame(prepared.recipe, breaks_at)


class _Stopwatch:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = time.perf_counter()

    def lap_ms(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        lap, self._last = (now - self._last) * 1000, now
        return lap
