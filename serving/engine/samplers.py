"""Samplers by their wire names, as diffusers' schedulers on SDXL's noise schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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

#: What a prediction changes of SDXL's schedule. A schedule that ends in noise alone begins there:
#: "trailing" timesteps (Lin et al. 2023, arXiv:2305.08891).
_PREDICTIONS: Mapping[Prediction, Mapping[str, Any]] = {
    "epsilon": {},
    "v_prediction": {"prediction_type": "v_prediction"},
    "v_prediction_zero_snr": {
        "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
}  # fmt: skip
#: How much of guidance's contrast is taken back, where the schedule ends in noise alone: the
#: value of the same paper, without which images are overexposed.
GUIDANCE_RESCALE: Mapping[Prediction, float] = {"v_prediction_zero_snr": 0.7}


def guided_prediction(
    without: torch.Tensor, with_prompt: torch.Tensor, scale: float, rescale: float
) -> torch.Tensor:
    """Classifier-free guidance of predictions [n, channels, height, width]. ``rescale`` brings the
    standard deviation of each image's result so far towards that of ``with_prompt``."""
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
    """A fresh scheduler for one batch: it carries state. ``shape`` is [1, channels, height,
    width] of one image's latents; ``generators`` draw what noise the sampler adds, one each.

    Timesteps and coefficients stay on the CPU: a step reads them without waiting for the device.
    """
    schedule: dict[str, Any] = {**SDXL_SCHEDULE, **_PREDICTIONS[prediction]}
    made: Any
    if sampler == "DDIM":
        made = DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False)
    elif sampler == "K_EULER":
        made = EulerDiscreteScheduler(**schedule)
    elif sampler == "K_EULER_ANCESTRAL":
        return EulerAncestral(schedule, steps, shape, generators, device)
    else:
        made = DPMSolverMultistepScheduler(**schedule, use_karras_sigmas=True)
    made.set_timesteps(steps)
    return made


class EulerAncestral:
    """Euler's method with ancestral noise (Karras et al. 2022, as k-diffusion has it). The noise
    of all steps is drawn first and copied once: diffusers' own step copies in each step, and
    waits for the device."""

    def __init__(
        self,
        schedule: dict[str, Any],
        steps: int,
        shape: Sequence[int],
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        self._grid: Any = EulerAncestralDiscreteScheduler(**schedule)
        self._predicts_noise = schedule["prediction_type"] == "epsilon"
        self._grid.set_timesteps(steps)
        self.timesteps: torch.Tensor = self._grid.timesteps
        self.init_noise_sigma = self._grid.init_noise_sigma
        generated = [
            torch.cat([torch.randn(*shape, generator=g) for g in generators]) for _ in range(steps)
        ]
        self._noise = to_device(torch.stack(generated), device)
        self._step = 0

    def scale_model_input(self, sample: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = sample / ((self._grid.sigmas[self._step] ** 2 + 1) ** 0.5)
        return scaled

    def step(
        self,
        predicted: torch.Tensor,
        _: torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """The next latents."""
        sigma, following = self._grid.sigmas[self._step], self._grid.sigmas[self._step + 1]
        up = (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5
        down = (following**2 - up**2) ** 0.5
        clean = self._clean(sample, sigma, predicted)
        derivative = (sample - clean) / sigma
        noise = self._noise[self._step]
        self._step += 1
        return (sample + derivative * (down - sigma) + noise * up,)

    def _clean(
        self, sample: torch.Tensor, sigma: torch.Tensor, predicted: torch.Tensor
    ) -> torch.Tensor:
        """The image without noise that is predicted at ``sigma``."""
        if self._predicts_noise:
            return sample - sigma * predicted
        square = sigma**2 + 1
        return sample / square - predicted * (sigma / square**0.5)
