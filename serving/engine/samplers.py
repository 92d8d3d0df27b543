"""Samplers by wire name: diffusers' schedulers on SDXL's noise schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)

from assets.families.sdxl import SDXL_SCHEDULE
from assets.prediction import Prediction
from serving.engine.devices import to_device
from serving.generation.contract import Sampler

#: Schedules that end in pure noise start there: Lin et al. 2023, arXiv:2305.08891.
_PREDICTIONS: Mapping[Prediction, Mapping[str, object]] = {
    "epsilon": {},
    "v_prediction": {"prediction_type": "v_prediction"},
    "v_prediction_zero_snr": {
        "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
}  # fmt: skip
#: The same paper's value: without it images are overexposed.
GUIDANCE_RESCALE: Mapping[Prediction, float] = {"v_prediction_zero_snr": 0.7}


def guided_prediction(
    without: torch.Tensor, with_prompt: torch.Tensor, scale: float, rescale: float
) -> torch.Tensor:
    """Apply classifier-free guidance to predictions [n, channels, height, width].

    ``rescale``: how far (0..1) standard deviations move towards ``with_prompt``'s.
    """
    guided = without + scale * (with_prompt - without)
    if not rescale:
        return guided
    dims = tuple(range(1, guided.dim()))
    spread = with_prompt.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return guided * (rescale * spread + (1 - rescale))


def scheduler(
    sampler: Sampler,
    steps: int,
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device,
    prediction: Prediction = "epsilon",
) -> Any:
    """Return a stateful scheduler for one batch, with CPU coefficients: no waits.

    ``shape`` is one image's latents, [1, channels, height, width]; each image has a generator.
    """
    schedule: dict[str, object] = {**SDXL_SCHEDULE, **_PREDICTIONS[prediction]}
    result: Any
    if sampler == "DDIM":
        result = DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False)
    elif sampler == "K_EULER":
        result = EulerDiscreteScheduler(**schedule)
    elif sampler == "K_EULER_ANCESTRAL":
        return EulerAncestral(schedule, steps, shape, generators, device)
    elif sampler == "DPM_PLUS_PLUS_2M_KARRAS":
        result = DPMSolverMultistepScheduler(**schedule, use_karras_sigmas=True)
    else:
        assert_never(sampler)
    result.set_timesteps(steps)
    return result


class EulerAncestral:
    """Euler's method with ancestral noise (Karras et al. 2022, as in k-diffusion).

    Unlike diffusers' own, copies all noise at once and never waits.
    """

    def __init__(
        self,
        schedule: dict[str, object],
        steps: int,
        shape: Sequence[int],
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        self._scheduler = EulerAncestralDiscreteScheduler(**schedule)
        self._predicts_noise = schedule["prediction_type"] == "epsilon"
        self._scheduler.set_timesteps(steps)
        self.timesteps: torch.Tensor = self._scheduler.timesteps
        self.init_noise_sigma = self._scheduler.init_noise_sigma
        noise = [
            torch.cat([torch.randn(*shape, generator=g) for g in generators]) for _ in range(steps)
        ]
        self._noise = to_device(torch.stack(noise), device)
        self._step = 0

    def scale_model_input(self, sample: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = sample / ((self._scheduler.sigmas[self._step] ** 2 + 1) ** 0.5)
        return scaled

    def step(
        self,
        predicted: torch.Tensor,
        _: torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """Return (next latents,), as diffusers does."""
        sigmas = self._scheduler.sigmas
        sigma, next_sigma = sigmas[self._step], sigmas[self._step + 1]
        up = (next_sigma**2 * (sigma**2 - next_sigma**2) / sigma**2) ** 0.5
        down = (next_sigma**2 - up**2) ** 0.5
        clean = self._clean(sample, sigma, predicted)
        derivative = (sample - clean) / sigma
        noise = self._noise[self._step]
        self._step += 1
        return (sample + derivative * (down - sigma) + noise * up,)

    def _clean(
        self, sample: torch.Tensor, sigma: torch.Tensor, predicted: torch.Tensor
    ) -> torch.Tensor:
        if self._predicts_noise:
            return sample - sigma * predicted
        square = sigma**2 + 1
        return sample / square - predicted * (sigma / square**0.5)
