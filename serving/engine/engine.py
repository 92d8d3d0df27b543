"""The engine: becomes a recipe and draws. One thread draws; another may prepare.

CPU (float32) and CUDA (float16, the VAE in bfloat16) from the same code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from assets.content import Blob, Component
from assets.formats.tensors import TensorFile
from assets.model import LATENT_SCALE, ModelManifest
from assets.recipe import Recipe
from orchestrator.device_tier import DeviceLease, DeviceTier
from orchestrator.provision import Found, Provisioner
from serving.drawing import Drawing, DrawRequest, Swap, Timings
from serving.engine.modules import bind_modules, build_modules
from serving.engine.pictures import encode_picture
from serving.engine.samplers import scheduler
from serving.engine.slabs import layouts_of, load_slabs
from serving.engine.text import Embeddings, TextEncoders
from serving.engine.values import (
    DeviceValue,
    Inversion,
    Lora,
    Pristine,
    elements,
    load_inversion,
    load_lora,
)
from serving.engine.working import WorkingSet, target_of
from serving.errors import Cancelled, DrawingFailed

#: Asked between steps; True stops the drawing.
IsCancelled = Callable[[], bool]

#: Pictures denoised together; more are drawn in turns.
MAX_BATCH = 4


@dataclass(slots=True)
class Prepared:
    """A recipe whose every value is leased on the device. Release it once, whatever happens."""

    recipe: Recipe
    leases: dict[str, DeviceLease[DeviceValue]] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)
    fetch_s: float = 0.0

    def release(self) -> None:
        for lease in self.leases.values():
            lease.release()
        self.leases.clear()

    def value(self, blob: Blob) -> DeviceValue:
        return self.leases[blob.key].value


class Engine:
    """One warm SDXL. ``prepare`` may run in any thread; ``draw`` in one only."""

    def __init__(
        self,
        manifest: ModelManifest,
        provisioner: Provisioner,
        device: str = "cpu",
        device_budget_bytes: int = 8 << 30,
        name: str = "engine",
    ) -> None:
        self.name = name
        self.manifest = manifest
        self.device = torch.device(device)
        fast = self.device.type == "cuda"
        self._dtype = torch.float16 if fast else torch.float32
        self._dtypes: dict[Component, torch.dtype] = {
            "unet": self._dtype,
            "text_encoder": self._dtype,
            "text_encoder_2": self._dtype,
            # SDXL's published VAE overflows in float16.
            "vae": torch.bfloat16 if fast else torch.float32,
        }
        self._provisioner = provisioner
        self._layouts = layouts_of(manifest.skeleton)
        self.tier: DeviceTier[DeviceValue] = DeviceTier(device_budget_bytes)
        self._working = WorkingSet(self._layouts, self.device, self._dtypes)
        modules = build_modules(manifest.configs)
        bind_modules(modules, self._working.parameter, self.device)
        self._unet, self._vae = modules["unet"], modules["vae"]
        self._text = TextEncoders(modules["text_encoder"], modules["text_encoder_2"])

    @property
    def base(self) -> Recipe:
        """The recipe of the base model alone."""
        parts = self.manifest.parts
        return Recipe(parts["unet"], parts["text_encoder"], parts["text_encoder_2"], parts["vae"])

    def digest(self) -> str:
        """sha256 of the working weights as they are."""
        return self._working.digest()

    def prepare(self, recipe: Recipe) -> Prepared:
        """Bring every value of the recipe to the device and lease it.

        Raises:
            TierError: no room, or corrupt bytes; nothing stays leased.
        """
        started = time.perf_counter()
        prepared = Prepared(recipe)
        try:
            for component, blob in recipe.components():
                self._lease(prepared, blob, cast(Component, component))
            for use in recipe.loras:
                self._lease(prepared, use.blob, "lora")
            for inversion in recipe.inversions:
                self._lease(prepared, inversion.blob, "textual_inversion")
        except BaseException:
            prepared.release()
            raise
        prepared.fetch_s = time.perf_counter() - started
        return prepared

    def _lease(self, prepared: Prepared, blob: Blob, component: Component) -> None:
        if blob.key in prepared.leases:
            return
        lease = self.tier.lease(blob.key)
        if lease is not None:
            prepared.leases[blob.key] = lease
            prepared.found.append(Found(blob.key, "gpu", 0, 0.0))
            return
        file_lease, found = self._provisioner.bring(blob)
        with file_lease, TensorFile(file_lease.path) as file:
            started = time.perf_counter()
            size = elements(file) * self._dtypes.get(component, self._dtype).itemsize
            lease, loaded = self.tier.admit(blob.key, size, lambda: self._load(file, component))
            spent = found.fetch_s + time.perf_counter() - started
        prepared.leases[blob.key] = lease
        moved = found.bytes_moved + (blob.size_bytes if loaded else 0)
        prepared.found.append(Found(blob.key, found.tier, moved, spent))

    def _load(self, file: TensorFile, component: Component) -> DeviceValue:
        if component == "lora":
            return load_lora(file, self._layouts, self.device, self._dtype)
        if component == "textual_inversion":
            return load_inversion(file, self.device, self._dtype)
        dtype = self._dtypes[component]
        return Pristine(load_slabs(file, self._layouts[component], self.device, dtype))

    def become(self, prepared: Prepared) -> Swap:
        """Write the recipe into the working weights."""
        recipe = prepared.recipe
        keys = {cast(Component, name): blob.key for name, blob in recipe.components()}
        pristine = {
            cast(Component, name): cast(Pristine, prepared.value(blob))
            for name, blob in recipe.components()
        }
        loras = {use.blob.key: cast(Lora, prepared.value(use.blob)) for use in recipe.loras}
        uses = [(use, loras[use.blob.key]) for use in recipe.loras]
        return self._working.become(target_of(keys, uses), pristine, loras)

    @torch.inference_mode()
    def draw(
        self, prepared: Prepared, request: DrawRequest, is_cancelled: IsCancelled = lambda: False
    ) -> Drawing:
        """Become the recipe and draw every picture of the request.

        Raises:
            Cancelled: within one step of ``is_cancelled`` turning true.
            DrawingFailed: the picture is not finite; names the likely cause.
        """
        clock = _Stopwatch(self.device)
        swap = self.become(prepared)
        swap_ms = clock.lap_ms()
        positive, negative, warnings = self._encode(prepared, request)
        encode_ms = clock.lap_ms()
        denoise_ms = decode_ms = 0.0
        images: list[bytes] = []
        for first in range(0, len(request.seeds), MAX_BATCH):
            seeds = request.seeds[first : first + MAX_BATCH]
            latents = self._denoise(request, seeds, positive, negative, is_cancelled)
            denoise_ms += clock.lap_ms()
            images += self._decode(latents, request)
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
                use.blob.key: cast(Lora, prepared.value(use.blob)).matched
                for use in prepared.recipe.loras
            },
            warnings=tuple(warnings),
        )

    def _encode(
        self, prepared: Prepared, request: DrawRequest
    ) -> tuple[Embeddings, Embeddings, list[str]]:
        recipe = prepared.recipe
        asked = {use.token: cast(Inversion, prepared.value(use.blob)) for use in recipe.inversions}
        inversions = dict(asked)  # what was asked for comes before what came along
        for lora in recipe.loras:
            for word, inversion in cast(Lora, prepared.value(lora.blob)).bundled.items():
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

    def _denoise(
        self,
        request: DrawRequest,
        seeds: Sequence[int],
        positive: Embeddings,
        negative: Embeddings,
        is_cancelled: IsCancelled,
    ) -> torch.Tensor:
        count = len(seeds)
        guided = request.cfg_scale > 1.0
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        sampler: Any = scheduler(request.sampler)
        sampler.set_timesteps(request.steps, device=self.device)
        height, width = request.height // LATENT_SCALE, request.width // LATENT_SCALE
        channels = int(self.manifest.configs["unet"]["in_channels"])
        noise = [torch.randn(1, channels, height, width, generator=g) for g in generators]
        latents: torch.Tensor = torch.cat(noise).to(self.device) * sampler.init_noise_sigma

        def rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            both = [a.expand(count, *a.shape[1:]), b.expand(count, *b.shape[1:])]
            return torch.cat(both if guided else both[1:])

        context = rows(negative.context, positive.context)
        # Original size, crop and target size: what SDXL is conditioned on beside the prompt.
        ids = [request.height, request.width, 0, 0, request.height, request.width]
        added = {
            "text_embeds": rows(negative.pooled, positive.pooled),
            "time_ids": torch.tensor([ids], device=self.device, dtype=context.dtype).expand(
                len(context), 6
            ),
        }
        extra: dict[str, Any] = {}
        if request.sampler == "K_EULER_ANCESTRAL":
            extra["generator"] = generators
        for step in sampler.timesteps:
            if is_cancelled():
                raise Cancelled("the drawing was stopped between two steps")
            sample = torch.cat([latents, latents]) if guided else latents
            sample = sampler.scale_model_input(sample, step).to(context.dtype)
            predicted = self._unet(
                sample, step, encoder_hidden_states=context, added_cond_kwargs=added,
                return_dict=False,
            )[0].float()  # fmt: skip
            if guided:
                without, with_prompt = predicted.chunk(2)
                predicted = without + request.cfg_scale * (with_prompt - without)
            latents = sampler.step(predicted, step, latents, **extra, return_dict=False)[0]
        return latents

    def _decode(self, latents: torch.Tensor, request: DrawRequest) -> list[bytes]:
        if not torch.isfinite(latents).all():
            raise DrawingFailed(
                "the drawing is not finite: an asset at this weight drives the model out of range"
            )
        dtype = self._dtypes["vae"]
        factor = float(self.manifest.configs["vae"]["scaling_factor"])
        images = []
        for latent in latents:
            decoded = self._vae.decode((latent[None] / factor).to(dtype), return_dict=False)[0][0]
            if not torch.isfinite(decoded).all():
                raise DrawingFailed(f"the VAE's output is not finite in {dtype}")
            images.append(encode_picture(decoded, request.encoding))
        return images

    def resident(self) -> Mapping[str, frozenset[str]]:
        """Content keys by tier."""
        host, disk = self._provisioner.tiers
        return {
            "gpu": frozenset(self.tier.resident()),
            "host": frozenset(host.resident()),
            "disk": frozenset(disk.resident()),
        }


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
