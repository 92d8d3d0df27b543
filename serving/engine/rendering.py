"""Rendering of a request's images: in batches, checked, with the phases timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import torch
from cachetools import LRUCache
from msgspec import structs

from assets.recipe import Recipe
from serving.engine.decoder import ImageDecoder
from serving.engine.denoise import Denoiser, IsCancelled
from serving.engine.device_cache import Prepared
from serving.engine.diagnosis import blame
from serving.engine.images import copy_pixels, encode_image
from serving.engine.laps import PhaseTimer
from serving.engine.previews import Previewer
from serving.engine.prompts import PromptEncoder
from serving.engine.text import Embeddings
from serving.errors import Cancelled, NotFinite
from serving.generation.choices import of_image
from serving.generation.contract import (
    GenerationParams,
    GenerationResult,
    GenerationTask,
    Swap,
    Timings,
)
from serving.generation.engine import (
    EncodedImage,
    GenerationObserver,
    Rendered,
    SubmitEncoding,
)
from serving.generation.parameters import parameters_text


class Renderer:
    """Renders with the weights that ``switch_to`` writes. Owned by the generating thread.

    ``warmed``: (width, height) → warmed batch sizes, largest first.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        switch_to: Callable[[Prepared], Swap],
        prompts: PromptEncoder,
        denoiser: Denoiser,
        decoder: ImageDecoder,
        *,
        max_batch: int,
    ) -> None:
        self.warmed: dict[tuple[int, int], tuple[int, ...]] = {}
        self._name = name
        self._device = device
        self._switch_to = switch_to
        self._prompts = prompts
        self._denoiser = denoiser
        self._unet = denoiser.unet
        self._decoder = decoder
        self._max_batch = max_batch
        self._previewer = Previewer(device)
        #: UNets that have generated finite images.
        self._proven: LRUCache[str, bool] = LRUCache(1_000)

    @torch.inference_mode()
    def render(
        self,
        prepared: Prepared,
        request: GenerationTask,
        observer: GenerationObserver,
        submit: SubmitEncoding,
    ) -> Rendered:
        """Switch to the recipe and render.

        Raises:
            Cancelled, NotFinite, torch.OutOfMemoryError; any error of the device.
        """
        is_cancelled = observer.is_cancelled
        if is_cancelled():
            raise Cancelled("the request was cancelled before it started")
        laps = PhaseTimer(self._device)
        fallbacks_before = self._unet.fallbacks.copy()
        swap = self._switch_to(prepared)
        laps.lap("swap")
        warnings: dict[str, None] = {}
        images: list[Future[EncodedImage]] = []
        batches: list[_Batch] = []
        encoded: tuple[GenerationParams, tuple[Embeddings, Embeddings, list[str]]] | None = None
        for task, seeds in self._in_batches(request):
            if encoded is None or encoded[0] != task.params:
                encoded = task.params, self._prompts.encode(prepared, task)
            positive, negative, told = encoded[1]
            warnings |= dict.fromkeys(told)
            laps.lap("encode_prompt")
            sampling = self._denoiser.steps(task, seeds, positive, negative, is_cancelled)
            for step, latents, clean in sampling:  # noqa: B007  the last ones are decoded
                start_preview = partial(self._previewer.start, clean)
                observer.stepped(step, len(images), len(seeds), start_preview)
            laps.lap("denoise")
            batch = _Batch(task, seeds, latents, torch.isfinite(latents).all())
            batches.append(batch)
            if is_cancelled():
                raise Cancelled("the request was cancelled before its images were decoded")
            for seed, (scaled, decoded) in zip(seeds, self._decoder.decode(latents), strict=True):
                batch.decoded.append((scaled, torch.isfinite(decoded).all()))
                pixels, encoding = copy_pixels(decoded), request.params.encoding
                images.append(submit(partial(encode_image, pixels, encoding, _text(task, seed))))
            laps.lap("decode")
            if self._device.type == "cpu":  # reading flags costs no wait
                self._check(prepared, batches, is_cancelled)
        settle(self._device)
        self._check(prepared, batches, is_cancelled)
        self._proven[prepared.recipe.unet.key] = True
        phases_ms = {f"{phase}_ms": ms for phase, ms in laps.read_ms().items()}
        result = GenerationResult(
            images=(),
            replica=self._name,
            fetches=tuple(prepared.fetches),
            swap=swap,
            timings=Timings(fetch_ms=prepared.fetch_s * 1000, **phases_ms),
            matched={
                use.blob.key: prepared.lora(use.blob).matched for use in prepared.recipe.loras
            },
            warnings=tuple(warnings),
            batches=tuple(len(batch.seeds) for batch in batches),
            fallbacks=dict(self._unet.fallbacks - fallbacks_before),
        )
        return Rendered(result, tuple(images))

    def _check(
        self,
        prepared: Prepared,
        batches: Sequence[_Batch],
        is_cancelled: IsCancelled,
    ) -> None:
        for batch in batches:
            if not batch.latents_finite:
                self._prompts.clear()  # may not be finite either
                raise self._blame(prepared, batch.task, batch.seeds, is_cancelled)
            for scaled, is_finite in batch.decoded:
                if not is_finite:
                    key = prepared.recipe.vae.key
                    raise self._decoder.blame(key, scaled)

    def _in_batches(
        self, request: GenerationTask
    ) -> Iterator[tuple[GenerationTask, tuple[int, ...]]]:
        """Yield tasks with their seeds: batch sizes that were warmed for this image size, and one
        prompt."""
        warmed = self.warmed.get((request.width, request.height))
        by_seed = ((of_image(request.params, seed), seed) for seed in request.seeds)
        for params, group in groupby(by_seed, key=lambda each: each[0]):
            task = structs.replace(request, params=params)
            seeds = tuple(seed for _, seed in group)
            while seeds:
                count = min(self._max_batch, len(seeds))
                if self._unet.is_faster_when_warm and warmed:
                    count = next((batch for batch in warmed if batch <= count), 1)
                yield task, seeds[:count]
                seeds = seeds[count:]

    def _blame(
        self,
        prepared: Prepared,
        request: GenerationTask,
        seeds: Sequence[int],
        is_cancelled: IsCancelled,
    ) -> NotFinite:
        def breaks_at(recipe: Recipe, within: int) -> int | None:
            part = Prepared(recipe, prepared.leases)
            self._switch_to(part)
            positive, negative, _ = self._prompts.encode(part, request)
            generated = self._denoiser.steps(request, seeds, positive, negative, is_cancelled)
            for step, latents, _ in generated:
                if not torch.isfinite(latents).all():
                    return step
                if step == within:
                    break
            return None

        is_proven = prepared.recipe.unet.key in self._proven
        return blame(prepared.recipe, request.params.steps, breaks_at, is_proven=is_proven)


@dataclass(slots=True)
class _Batch:
    """Images denoised together; ``task`` has their prompts. Flags are valid once the device has
    finished."""

    task: GenerationTask
    seeds: tuple[int, ...]
    latents: torch.Tensor
    latents_finite: torch.Tensor
    #: Per image: the VAE's input; whether its output is finite.
    decoded: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


def settle(device: torch.device) -> None:
    """Wait for what is queued on the device."""
    if device.type == "cuda":
        with suppress(RuntimeError):  # a lost device; already reported
            torch.cuda.current_stream(device).synchronize()


def _text(task: GenerationTask, seed: int) -> str | None:
    if task.provenance is None:
        return None
    return parameters_text(task.params, task.provenance, seed, task.width, task.height)
