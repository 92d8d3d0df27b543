"""From noise to latents: the loop of steps around the UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from assets.model import LATENT_SCALE
from serving.drawing import DrawRequest
from serving.engine.samplers import scheduler
from serving.engine.text import Embeddings
from serving.errors import Cancelled

#: Asked between steps; True stops the drawing.
IsCancelled = Callable[[], bool]
#: The UNet, compiled or not.
Predictor = Callable[..., tuple[torch.Tensor]]


class Denoiser:
    """Draws latents of [n, channels, height / 8, width / 8], one for each seed."""

    def __init__(self, predict: Predictor, channels: int, device: torch.device) -> None:
        self._predict = predict
        self._channels = channels
        self._device = device

    def steps(
        self,
        request: DrawRequest,
        seeds: Sequence[int],
        positive: Embeddings,
        negative: Embeddings,
        is_cancelled: IsCancelled,
    ) -> Iterator[torch.Tensor]:
        """The latents after each step.

        Raises:
            Cancelled: before the step at which ``is_cancelled`` has turned true.
        """
        count = len(seeds)
        guided = request.cfg_scale > 1.0
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        sampler: Any = scheduler(request.sampler)
        sampler.set_timesteps(request.steps, device=self._device)
        height, width = request.height // LATENT_SCALE, request.width // LATENT_SCALE
        noise = [torch.randn(1, self._channels, height, width, generator=g) for g in generators]
        latents: torch.Tensor = torch.cat(noise).to(self._device) * sampler.init_noise_sigma

        def rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            both = [a.expand(count, *a.shape[1:]), b.expand(count, *b.shape[1:])]
            return torch.cat(both if guided else both[1:])

        context = rows(negative.context, positive.context)
        # Original size, crop and target size: what SDXL is conditioned on beside the prompt.
        ids = [request.height, request.width, 0, 0, request.height, request.width]
        numbers = torch.tensor([ids], device=self._device, dtype=context.dtype)
        added = {
            "text_embeds": rows(negative.pooled, positive.pooled),
            "time_ids": numbers.expand(len(context), 6).contiguous(),
        }
        extra: dict[str, Any] = {}
        if request.sampler == "K_EULER_ANCESTRAL":
            extra["generator"] = generators
        # Samplers keep their timesteps as integers or floats; a compiled UNet knows one type.
        times = sampler.timesteps.to(torch.float32)
        for step, time in zip(sampler.timesteps, times, strict=True):
            if is_cancelled():
                raise Cancelled("the drawing was stopped between two steps")
            sample = torch.cat([latents, latents]) if guided else latents
            sample = sampler.scale_model_input(sample, step).to(context.dtype)
            predicted = self._predict(
                sample, time, encoder_hidden_states=context, added_cond_kwargs=added,
                return_dict=False,
            )[0].float()  # fmt: skip
            if guided:
                without, with_prompt = predicted.chunk(2)
                predicted = without + request.cfg_scale * (with_prompt - without)
            latents = sampler.step(predicted, step, latents, **extra, return_dict=False)[0]
            yield latents
