"""Solvers against diffusers' on the same grid, and against published formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from scipy.stats import beta

from assets.families.sdxl import SDXL_SCHEDULE
from assets.prediction import PREDICTIONS, Prediction
from serving.engine.sampling.grids import Grid, grid
from serving.engine.sampling.noise import NoiseSchedule
from serving.engine.sampling.plan import SamplingPlan
from serving.engine.sampling.samples import Samples, plan_of
from serving.engine.sampling.solvers import plan
from serving.generation.samplers import (
    SAMPLERS,
    SCHEDULES,
    Sampler,
    Schedule,
    evaluations,
    refusal,
)

#: Diffusers' own, of NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

SHAPE = (1, 4, 8, 8)
BEGIN = torch.randn(*SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(99, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
#: diffusers' class and its options, by word; the others differ in the grid only.
ORACLES: dict[Sampler, tuple[str, dict[str, Any]]] = {
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "HEUN": ("HeunDiscreteScheduler", {}),
    "K_EULER": ("EulerDiscreteScheduler", {}),
    "K_EULER_ANCESTRAL": ("EulerAncestralDiscreteScheduler", {}),
    "DPM_SOLVER_MULTISTEP": ("DPMSolverMultistepScheduler", {}),
    "DPM_PLUS_PLUS_2M_KARRAS": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM_PLUS_PLUS_2M_SDE": (
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"},
    ),
    "DPM_PLUS_PLUS_2M_SDE_KARRAS": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "DPM_SINGLE": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "DPM_2": ("KDPM2DiscreteScheduler", {}),
    "DPM_2_KARRAS": ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True}),
    "DPM_2_ANCESTRAL": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM_2_ANCESTRAL_KARRAS": ("KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}),
    "UNI_PC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {"clip_sample": False}),
}  # fmt: skip
#: They round the timesteps of a curve; ours are exact.
ROUNDED = ("DPM_PLUS_PLUS_2M_KARRAS", "DPM_PLUS_PLUS_2M_SDE_KARRAS", "DPM_2_KARRAS",
           "DPM_2_ANCESTRAL_KARRAS")  # fmt: skip


def model(sample: torch.Tensor, time: float) -> torch.Tensor:
    """A prediction that depends on everything, and on it smoothly."""
    return torch.sin(1.3 * sample) + 0.3 * sample * math.cos(time / 300) + 0.05


def followed(
    plan: SamplingPlan, predict: Callable[[torch.Tensor, float], torch.Tensor] = model
) -> Any:
    samples = Samples.__new__(Samples)
    samples.latents = BEGIN * plan.begin
    samples._noise, samples._memory = iter(NOISE), plan.memory + 1
    samples._samples, samples._clean = [], []
    for each in plan.evaluations:
        samples.advance(each, predict(each.scale * samples.latents, each.time))
    return samples.latents


@pytest.fixture
def drawn_noise(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes diffusers draw NOISE, from its beginning."""
    left: list[Iterator[torch.Tensor]] = []

    def draw(*_: Any, **__: Any) -> torch.Tensor:
        return next(left[-1])

    import diffusers

    for name in {class_name for class_name, _ in ORACLES.values()}:
        module = __import__(getattr(diffusers, name).__module__, fromlist=["_"])
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", draw)
    return lambda: left.append(iter(NOISE))


def stock(word: Sampler, **changes: Any) -> Any:
    import diffusers

    name, options = ORACLES[word]
    schedule: dict[str, Any] = {**SDXL_SCHEDULE, **options, **changes}
    kind = getattr(diffusers, name)
    return kind.from_config(schedule)


def stock_samples(scheduler: Any, steps: int) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    sample = BEGIN * float(scheduler.init_noise_sigma)
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, time)
        sample = scheduler.step(model(scaled, float(time)), time, sample, return_dict=False)[0]
    return sample


def stock_grid(scheduler: Any, word: Sampler, steps: int) -> Grid | None:
    """Of a scheduler that has σ; a step of two evaluations has two."""
    if not hasattr(scheduler, "sigmas"):
        return None
    times = [float(time) for time in scheduler.timesteps]
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    if evaluations(word, 2) == 3 and word != "PNDM":
        every = slice(1, None, 2) if word == "HEUN" else slice(2, None, 2)
        times, sigmas = [times[0], *times[every]], [sigmas[0], *sigmas[1::2]]
    return Grid(times[:steps], [*sigmas[:steps], 0.0])


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("steps", [4, 5, 30])
@pytest.mark.parametrize("word", ORACLES)
def test_a_solver_is_diffusers_on_the_same_grid(
    word: Sampler, steps: int, drawn_noise: Callable[[], None]
) -> None:
    scheduler = stock(word)
    drawn_noise()
    theirs = stock_samples(scheduler, steps)
    noise = NoiseSchedule.of("epsilon")
    points = stock_grid(scheduler, word, steps)
    if points is not None:
        made = plan(SAMPLERS[word].solver, points, "epsilon", noise.timestep)
        assert distance(followed(made), theirs) <= 1e-5
    own = plan_of(word, None, steps, "epsilon")
    assert len(own.evaluations) == len(scheduler.timesteps) == evaluations(word, steps)
    if word not in ROUNDED:
        assert distance(followed(own), theirs) <= 1e-5


@pytest.mark.parametrize("word", ["DDIM", "K_EULER", "K_EULER_ANCESTRAL", "DPM_SOLVER_MULTISTEP",
                                  "UNI_PC"])  # fmt: skip
@pytest.mark.parametrize("prediction", ["v_prediction", "v_prediction_zero_snr"])
def test_velocity_is_diffusers(
    word: Sampler, prediction: Prediction, drawn_noise: Callable[[], None]
) -> None:
    options = {"prediction_type": "v_prediction"}
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = stock(word, **options, **(zero if prediction.endswith("snr") else {}))
    drawn_noise()
    theirs = stock_samples(scheduler, 25)
    ours = plan_of(word, None, 25, prediction)
    assert distance(followed(ours), theirs) <= 1e-5


def test_stochastic_steps_are_k_diffusions() -> None:
    """DPM++ SDE as published: r = 1/2, with noise at both evaluations."""
    noise = NoiseSchedule.of("epsilon")
    points = grid("karras", 6, noise, ends_clean=True)
    draws = iter(NOISE)

    def clean(sample: torch.Tensor, sigma: float) -> torch.Tensor:
        scale = 1 / math.sqrt(sigma**2 + 1)
        return sample - sigma * model(sample * scale, noise.timestep(sigma))

    def split(sigma: float, target: float) -> tuple[float, float]:
        up = min(target, math.sqrt(target**2 * (sigma**2 - target**2) / sigma**2))
        return math.sqrt(target**2 - up**2), up

    sample = BEGIN * math.sqrt(points.sigmas[0] ** 2 + 1)
    for sigma, target in zip(points.sigmas, points.sigmas[1:], strict=False):
        denoised = clean(sample, sigma)
        if target == 0:
            sample = sample + (sample - denoised) / sigma * (target - sigma)
            continue
        middle = math.exp((math.log(sigma) + math.log(target)) / 2)
        down, up = split(sigma, middle)
        part = math.exp(math.log(down) - math.log(sigma))
        between = part * sample + (1 - part) * denoised + next(draws) * up
        denoised = clean(between, middle)
        down, up = split(sigma, target)
        part = math.exp(math.log(down) - math.log(sigma))
        sample = part * sample + (1 - part) * denoised + next(draws) * up
    made = plan_of("DPM_PLUS_PLUS_SDE_KARRAS", None, 6, "epsilon")
    assert distance(followed(made), sample) <= 1e-9


def test_linear_multistep_integrates_the_slopes_polynomial() -> None:
    """The weights of four slopes are exact for a cubic."""
    made = plan_of("LMS", None, 12, "epsilon")
    sigmas = grid("leading", 12, NoiseSchedule.of("epsilon"), ends_clean=True).sigmas
    for index, each in enumerate(made.evaluations[3:], 3):
        weights = [-weight for _, weight in sorted(each.advance.clean.items())]
        for power in range(4):
            slopes = [sigmas[index - back] ** power for back in range(4)]
            # clean's weight is -w / σ
            total = sum(
                weight * sigmas[index - back] * slope
                for back, (weight, slope) in enumerate(zip(weights, slopes, strict=True))
            )
            exact = sigmas[index + 1] ** (power + 1) - sigmas[index] ** (power + 1)
            assert total == pytest.approx(exact / (power + 1), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("word", SAMPLERS)
def test_every_pair_is_exact_or_refused(
    word: Sampler, schedule: Schedule, prediction: Prediction
) -> None:
    """If the model always predicts the same clean image, every solver ends at that image."""
    reason = refusal(word, schedule, prediction)
    if reason is not None:
        assert word in reason or "zero terminal SNR" in reason
        return
    steps = 8
    clean = NOISE[50]
    made = plan_of(word, schedule, steps, prediction)
    times = [each.time for each in made.evaluations]
    assert all(0 <= time <= 999 for time in times)
    assert made.evaluations[-1].step == steps
    assert sorted({each.step for each in made.evaluations}) == list(range(1, steps + 1))
    assert len(times) == evaluations(word, steps)
    samples = Samples.__new__(Samples)
    samples.latents = BEGIN * made.begin
    samples._noise, samples._memory = iter(NOISE), made.memory + 1
    samples._samples, samples._clean = [], []
    for each in made.evaluations:
        of_sample, of_prediction = each.clean
        predicted = (clean - of_sample * samples.latents) / of_prediction
        samples.advance(each, predicted)
        assert torch.allclose(samples.clean, clean, atol=1e-6)
    if word not in ("DDIM", "PNDM"):  # they end with a little noise
        assert distance(samples.latents, clean) <= 1e-6
    else:
        assert distance(samples.latents, clean) <= 0.1


@pytest.mark.parametrize("word", SAMPLERS)
def test_a_batch_is_its_images(word: Sampler) -> None:
    made = plan_of(word, None, 6, "epsilon")

    def sampled(*seeds: int) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        samples = Samples(made, SHAPE, generators, torch.device("cpu"))
        for each in made.evaluations:
            samples.advance(each, model(each.scale * samples.latents, each.time))
        return samples.latents

    batch = sampled(3, 4, 5, 6)
    for index, seed in enumerate((3, 4, 5, 6)):
        assert torch.equal(batch[index : index + 1], sampled(seed))


def test_few_steps_from_pure_noise() -> None:
    """What few-step models are trained on (Lightning, LCM)."""
    noise = NoiseSchedule.of("epsilon")
    assert grid("trailing", 4, noise, ends_clean=True).timesteps == [999, 749, 499, 249]
    assert grid("lcm", 4, noise, ends_clean=True).timesteps == [999, 759, 499, 259]
    assert grid("leading", 4, noise, ends_clean=True).timesteps == [751, 501, 251, 1]


def test_beta_quantiles() -> None:
    """Of the distribution with α = β = 0.6."""
    noise = NoiseSchedule.of("epsilon")
    times = grid("beta", 20, noise, ends_clean=True).timesteps
    exact = [round(999 * float(beta.ppf(1 - index / 20, 0.6, 0.6))) for index in range(20)]
    assert max(abs(a - b) for a, b in zip(times, exact, strict=True)) <= 1


def test_the_table_of_differences(drawn_noise: Callable[[], None]) -> None:
    """Printed with ``-s``: each word's difference from diffusers on the same grid."""
    for word in ORACLES:
        scheduler = stock(word)
        drawn_noise()
        theirs = stock_samples(scheduler, 30)
        points = stock_grid(scheduler, word, 30)
        noise = NoiseSchedule.of("epsilon")
        made = plan_of(word, None, 30, "epsilon")
        if points is not None:
            made = plan(SAMPLERS[word].solver, points, "epsilon", noise.timestep)
        difference = distance(followed(made), theirs)
        print(f"{word:28} {len(made.evaluations):3} evaluations  {difference:.0e}")
        assert difference <= 1e-5
