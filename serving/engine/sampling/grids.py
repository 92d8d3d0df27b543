"""Schedules: at which noise levels a sampler takes its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from assets.families.sdxl import SDXL_SCHEDULE
from serving.engine.sampling.noise import TRAINING_STEPS, Floats, NoiseSchedule
from serving.generation.samplers import Schedule

_OFFSET = int(SDXL_SCHEDULE["steps_offset"])
_RHO = 7.0
#: Of the beta distribution (arXiv:2407.12173).
_BETA = 0.6
_QUANTILE_POINTS = 20_001
#: Of the schedule that LCM is trained on.
_LCM_STEPS = 50


@dataclass(frozen=True, slots=True)
class Grid:
    """``timesteps`` of n steps; ``sigmas`` of the n and of the end. ``is_pure_noise``: the first is
    infinite; a large one stands for it."""

    timesteps: Sequence[float]
    sigmas: Sequence[float]
    is_pure_noise: bool = False


def grid(schedule: Schedule, steps: int, noise: NoiseSchedule, *, ends_clean: bool) -> Grid:
    """``ends_clean``: the last step leads to σ = 0, else to the least σ that models are trained
    on."""
    last = 0.0 if ends_clean else noise.sigma(0)
    match schedule:
        case "leading":
            times = _spaced(steps, TRAINING_STEPS // steps, _OFFSET)
        case "multistep":
            times = _spaced(steps + 1, TRAINING_STEPS // (steps + 1), _OFFSET)[:-1]
        case "uniform":
            times = np.linspace(TRAINING_STEPS - 1, 0, steps).tolist()
        case "trailing":
            stride = TRAINING_STEPS / steps
            times = [round(TRAINING_STEPS - index * stride) - 1 for index in range(steps)]
        case "sgm_uniform":
            times = np.linspace(0, TRAINING_STEPS - 1, steps + 1).round()[:0:-1].tolist()
        case "lcm":
            trained = [k * TRAINING_STEPS // _LCM_STEPS - 1 for k in range(_LCM_STEPS, 0, -1)]
            times = [trained[index * _LCM_STEPS // steps] for index in range(steps)]
        case "simple":
            stride = TRAINING_STEPS / steps
            times = [TRAINING_STEPS - 1 - int(index * stride) for index in range(steps)]
        case "beta":
            places = _beta_quantiles(1 - np.linspace(0, 1, steps, endpoint=False))
            times = [round(place * (TRAINING_STEPS - 1)) for place in places]
        case "karras" | "exponential":
            sigmas = _curve(schedule, steps, noise.sigma(TRAINING_STEPS - 1), noise.sigma(0))
            times = [noise.timestep(sigma) for sigma in sigmas]
            return Grid(times, [*sigmas, last], noise.ends_in_noise)
        case _:
            assert_never(schedule)
    is_pure = noise.ends_in_noise and times[0] == TRAINING_STEPS - 1
    return Grid(times, [*(noise.sigma(time) for time in times), last], is_pure)


def _spaced(count: int, stride: int, offset: int) -> list[float]:
    return [float(index * stride + offset) for index in reversed(range(count))]


def _curve(schedule: Schedule, steps: int, most: float, least: float) -> list[float]:
    ramp = np.linspace(0, 1, steps)
    if schedule == "karras":  # Karras et al. 2022, arXiv:2206.00364, equation 5
        roots = most ** (1 / _RHO) + ramp * (least ** (1 / _RHO) - most ** (1 / _RHO))
        return [float(sigma) for sigma in roots**_RHO]
    return [float(sigma) for sigma in np.exp(np.linspace(math.log(most), math.log(least), steps))]


def _beta_quantiles(shares: Floats) -> list[float]:
    """Quantiles of the beta distribution with both parameters ``_BETA``.

    Integrates over θ with x = sin²(θ/2): the density (sin θ)^(2β - 1) of θ has no pole.
    """
    angles = np.linspace(0, math.pi, _QUANTILE_POINTS)
    middles = (angles[1:] + angles[:-1]) / 2
    weights = np.sin(middles) ** (2 * _BETA - 1)
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    found = np.interp(shares, sums / sums[-1], angles)
    return [float(place) for place in np.sin(found / 2) ** 2]
