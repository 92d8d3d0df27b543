"""Follows a plan: samples of a batch, from noise to latents. Never reads the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from assets.prediction import Prediction
from serving.engine.devices import to_device
from serving.engine.sampling.grids import grid
from serving.engine.sampling.noise import NoiseSchedule
from serving.engine.sampling.plan import Evaluation, SamplingPlan, Terms
from serving.engine.sampling.solvers import ENDS_NOISY, plan
from serving.generation.samplers import LATE, SAMPLERS, Sampler, Schedule, schedule_of


@lru_cache(256)
def plan_of(
    sampler: Sampler, schedule: Schedule | None, steps: int, prediction: Prediction
) -> SamplingPlan:
    solver = SAMPLERS[sampler].solver
    noise = NoiseSchedule.of(prediction)
    chosen = schedule_of(sampler, schedule)
    if prediction == "v_prediction_zero_snr" and schedule is None and chosen in LATE:
        chosen = "trailing"  # these models are trained to begin with nothing but noise
    points = grid(chosen, steps, noise, ends_clean=solver not in ENDS_NOISY)
    return plan(solver, points, prediction, noise.timestep)


class Samples:
    """The samples of a batch, [n, channels, height, width], in float32."""

    def __init__(
        self,
        plan: SamplingPlan,
        shape: Sequence[int],
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        """``shape``: one image's, [1, channels, height, width]; each image has a generator, from
        which the beginning comes first, then the noise of each evaluation."""
        draws = [
            torch.cat([torch.randn(*shape, generator=g) for g in generators])
            for _ in range(1 + plan.noises)
        ]
        noise = to_device(torch.stack(draws), device)  # copied at once
        self.latents = noise[0] * plan.begin
        #: The last prediction of the clean image.
        self.clean = torch.zeros_like(self.latents)
        self._noise = iter(noise[1:])
        self._memory = plan.memory + 1
        self._samples: list[torch.Tensor] = []
        self._clean: list[torch.Tensor] = []

    def advance(self, evaluation: Evaluation, predicted: torch.Tensor) -> None:
        """Take what the UNet predicted for ``scale`` · :attr:`latents`."""
        of_sample, of_prediction = evaluation.clean
        self.clean = of_sample * self.latents + of_prediction * predicted
        self._clean = [*self._clean, self.clean][-self._memory :]
        sample = self.latents
        if evaluation.correct is not None:
            sample = self._sum(evaluation.correct, [*self._samples, sample])
        self._samples = [*self._samples, sample][-self._memory :]
        self.latents = self._sum(evaluation.advance, self._samples)
        if evaluation.advance.noise:
            self.latents = self.latents + evaluation.advance.noise * next(self._noise)

    def _sum(self, terms: Terms, samples: Sequence[torch.Tensor]) -> torch.Tensor:
        total: torch.Tensor | None = None
        for kept, weights in ((samples, terms.samples), (self._clean, terms.clean)):
            for back, weight in weights.items():
                if weight:
                    part = weight * kept[-1 - back]
                    total = part if total is None else total + part
        assert total is not None
        return total
