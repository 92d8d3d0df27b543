"""The denoising loop around the UNet: from noise to latents.

It never waits for results; queueing few evaluations keeps cancellation prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from assets.base_model.manifest import LATENT_SCALE
from serving.engine.devices import Event, record_event, to_device
from serving.engine.graphs import UnetKey
from serving.engine.guidance import GUIDANCE_RESCALE, guided_prediction
from serving.engine.sampling.samples import Samples, plan_of
from serving.engine.text import Embeddings
from serving.engine.unet import UnetRunner
from serving.engine.vocabulary import MAX_TOKENS
from serving.errors import Cancelled
from serving.generation.contract import GenerationTask

#: Called between steps; True stops the generation.
IsCancelled = Callable[[], bool]

#: Evaluations queued on the device, including the current one.
STEPS_AHEAD = 2


class Sampled(NamedTuple):
    """What is there after ``step`` steps: the sample, at last the latents; the clean image as it is
    predicted now."""

    step: int
    latents: torch.Tensor
    clean: torch.Tensor


class Denoiser:
    """Generates latents [n, channels, height / 8, width / 8], one row per seed."""

    def __init__(
        self,
        unet: UnetRunner,
        schema: str,
        channels: int,
        device: torch.device,
        record: Callable[[torch.device], Event] = record_event,
    ) -> None:
        """``schema`` is the fingerprint of the UNet's configuration."""
        self.unet = unet
        self._schema = schema
        self._channels = channels
        self._device = device
        self._record = record
        # Shared by a request's batches: one starts while the last is decoded.
        self._queued: deque[Event] = deque()

    def steps(
        self,
        request: GenerationTask,
        seeds: Sequence[int],
        positive: Embeddings,
        negative: Embeddings,
        is_cancelled: IsCancelled,
    ) -> Iterator[Sampled]:
        """Yield each step's result, perhaps still queued.

        Raises:
            Cancelled: at most ``STEPS_AHEAD`` + 1 evaluations after ``is_cancelled`` returns True.
        """
        count, params = len(seeds), request.params
        guided = params.is_guided
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        shape = (1, self._channels, request.height // LATENT_SCALE, request.width // LATENT_SCALE)
        prediction = request.recipe.prediction
        plan = plan_of(params.sampler, params.schedule, params.steps, prediction)
        samples = Samples(plan, shape, generators, self._device)

        def rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            both = [a.expand(count, *a.shape[1:]), b.expand(count, *b.shape[1:])]
            return torch.cat(both if guided else both[1:])

        context = rows(negative.context, positive.context)
        # SDXL's original size, crop and target size.
        ids = [request.height, request.width, 0, 0, request.height, request.width]
        numbers = to_device(torch.tensor([ids], dtype=context.dtype), self._device)
        added = {
            "text_embeds": rows(negative.pooled, positive.pooled),
            "time_ids": numbers.expand(len(context), 6).contiguous(),
        }
        key = UnetKey(
            schema=self._schema, width=request.width, height=request.height, batch=count,
            guided=guided, context_chunks=context.shape[1] // MAX_TOKENS,
        )  # fmt: skip
        predict = self.unet.start(key, context, added)
        # Of one type: a compiled UNet accepts no other.
        times = torch.tensor([each.time for each in plan.evaluations], dtype=torch.float32)
        times = to_device(times, self._device)
        queued, rescale = self._queued, GUIDANCE_RESCALE.get(prediction, 0.0)
        following = [*(each.step for each in plan.evaluations[1:]), params.steps + 1]
        for evaluation, time, next_step in zip(plan.evaluations, times, following, strict=True):
            if len(queued) == STEPS_AHEAD:
                queued.popleft().wait()
            if is_cancelled():
                raise Cancelled("the generation was cancelled between two steps")
            latents = samples.latents
            sample = torch.cat([latents, latents]) if guided else latents
            sample = (sample * evaluation.scale).to(context.dtype)
            # Copied: the next prediction overwrites a graph's output.
            predicted = predict(sample, time).to(torch.float32, copy=True)
            if guided:
                without, with_prompt = predicted.chunk(2)
                predicted = guided_prediction(without, with_prompt, params.cfg_scale, rescale)
            samples.advance(evaluation, predicted)
            queued.append(self._record(self._device))
            if next_step > evaluation.step:
                yield Sampled(evaluation.step, samples.latents, samples.clean)
