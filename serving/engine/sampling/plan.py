"""What a sampler does, evaluation by evaluation, as numbers.

Every solver here is linear: a sample is a weighted sum of earlier samples, of earlier predictions
of the clean image, and of noise. So a plan is data; the loop that follows it knows no solver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Terms:
    """A weighted sum. Keys: how many evaluations back; 0 is the present one."""

    samples: Mapping[int, float] = field(default_factory=dict)
    clean: Mapping[int, float] = field(default_factory=dict)
    noise: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One evaluation of the UNet at ``time`` with ``scale`` · sample.

    ``clean``: the weights of sample and prediction in the clean image. ``correct``, if any,
    replaces the sample, before ``advance`` makes the next one. ``step``: the steps that are done
    after it.
    """

    time: float
    scale: float
    clean: tuple[float, float]
    advance: Terms
    step: int
    correct: Terms | None = None


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """``begin``: the weight of the noise that the first sample is."""

    begin: float
    evaluations: Sequence[Evaluation]

    @property
    def memory(self) -> int:
        """How many evaluations back it looks."""
        return max(
            (
                back
                for evaluation in self.evaluations
                for terms in (evaluation.advance, evaluation.correct)
                if terms is not None
                for back in (*terms.samples, *terms.clean)
            ),
            default=0,
        )

    @property
    def noises(self) -> int:
        """How many evaluations add noise."""
        return sum(bool(evaluation.advance.noise) for evaluation in self.evaluations)
