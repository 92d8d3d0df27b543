"""Samplers by their wire names, as diffusers' schedulers on SDXL's noise schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)

from assets.sdxl import SDXL_SCHEDULE
from serving.drawing import Sampler
from serving.engine.devices import to_device


def scheduler(
    sampler: Sampler,
    steps: int,
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device,
) -> Any:
    """A fresh scheduler for one batch: it carries state. ``shape`` is [1, channels, height,
    width] of one image's latents; ``generators`` draw what noise the sampler adds, one each.

    Timesteps and coefficients stay on the CPU: a step reads them without waiting for the device.
    """
    schedule: dict[str, Any] = dict(SDXL_SCHEDULE)
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
        self._grid.set_timesteps(steps)
        self.timesteps: torch.Tensor = self._grid.timesteps
        self.init_noise_sigma = self._grid.init_noise_sigma
        drawn = [
            torch.cat([torch.randn(*shape, generator=g) for g in generators]) for _ in range(steps)
        ]
        self._noise = to_device(torch.stack(drawn), device)
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
        """The next latents. ``predicted`` is the noise."""
        sigma, following = self._grid.sigmas[self._step], self._grid.sigmas[self._step + 1]
        up = (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5
        down = (following**2 - up**2) ** 0.5
        clean = sample - sigma * predicted
        derivative = (sample - clean) / sigma
        noise = self._noise[self._step]
        self._step += 1
        return (sample + derivative * (down - sigma) + noise * up,)
