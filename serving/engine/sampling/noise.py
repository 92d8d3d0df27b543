"""SDXL's noise schedule: how much of each of 1,000 training timesteps is noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assets.families.sdxl import SDXL_SCHEDULE
from assets.prediction import Prediction

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]

TRAINING_STEPS = int(SDXL_SCHEDULE["num_train_timesteps"])
#: Replaces ᾱ = 0 (pure noise), where σ would be infinite. diffusers uses the same value.
_LEAST_ALPHA_BAR = 2.0**-24


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """``alpha_bars``: ᾱ by timestep, descending. A sample is √ᾱ · clean + √(1 - ᾱ) · noise."""

    alpha_bars: Sequence[float]

    @classmethod
    def of(cls, prediction: Prediction) -> NoiseSchedule:
        begin, end = float(SDXL_SCHEDULE["beta_start"]), float(SDXL_SCHEDULE["beta_end"])
        # float32, as the models were trained: the published values.
        betas = np.linspace(begin**0.5, end**0.5, TRAINING_STEPS, dtype=np.float32) ** 2
        bars = np.cumprod(1.0 - betas, dtype=np.float32).astype(np.float64)
        if prediction == "v_prediction_zero_snr":
            bars = _zero_terminal_snr(bars)
        return cls(tuple(bars.tolist()))

    @property
    def ends_in_noise(self) -> bool:
        """Whether the last timestep is nothing but noise."""
        return self.alpha_bars[-1] == 0

    def sigma(self, timestep: float) -> float:
        """σ = √((1 - ᾱ) / ᾱ), between timesteps by interpolation."""
        low = min(int(timestep), TRAINING_STEPS - 2)
        part = timestep - low
        below, above = (_sigma(self.alpha_bars[index]) for index in (low, low + 1))
        return below if part == 0 else above if part == 1 else below * (1 - part) + above * part

    def timestep(self, sigma: float) -> float:
        """The timestep of a σ, by interpolation of its logarithm."""
        logs = np.log([_sigma(bar) for bar in self.alpha_bars])
        return float(np.interp(math.log(sigma), logs, np.arange(TRAINING_STEPS)))


def _sigma(alpha_bar: float) -> float:
    alpha_bar = max(alpha_bar, _LEAST_ALPHA_BAR)
    return math.sqrt((1 - alpha_bar) / alpha_bar)


def _zero_terminal_snr(bars: Floats) -> Floats:
    """Shift and scale √ᾱ so that the last is 0 and the first stays (arXiv:2305.08891)."""
    roots = np.sqrt(bars)
    first, last = float(roots[0]), float(roots[-1])
    return np.asarray(np.square((roots - last) * (first / (first - last))))
