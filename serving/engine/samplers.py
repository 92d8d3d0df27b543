"""Samplers by their wire names, as diffusers' schedulers on SDXL's noise schedule."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)

from assets.sdxl import SDXL_SCHEDULE
from serving.drawing import Sampler


def scheduler(sampler: Sampler) -> Any:
    """A fresh scheduler: it carries the state of one drawing."""
    schedule: dict[str, Any] = dict(SDXL_SCHEDULE)
    if sampler == "DDIM":
        return DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False)
    if sampler == "K_EULER":
        return EulerDiscreteScheduler(**schedule)
    if sampler == "K_EULER_ANCESTRAL":
        return EulerAncestralDiscreteScheduler(**schedule)
    return DPMSolverMultistepScheduler(**schedule, use_karras_sigmas=True)
