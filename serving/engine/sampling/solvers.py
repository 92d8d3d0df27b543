"""Solvers: each turns a grid into a plan.

σ-space: the sample is clean + σ · noise (Karras et al. 2022); with d = (x - clean) / σ a step of
Euler is x + (σ' - σ) d = r x + (1 - r) clean, r = σ' / σ. α-space: α · clean + s · noise, as the
models are trained. Half of log signal to noise is λ = -ln σ in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from assets.prediction import Prediction
from serving.engine.sampling.grids import Grid
from serving.engine.sampling.plan import Evaluation, SamplingPlan, Terms
from serving.generation.samplers import Solver

_LMS_ORDER = 4
#: Adams-Bashforth's weights, newest first, by how many predictions there are.
_ADAMS_BASHFORTH = (
    (1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)  # fmt: skip
#: Luo et al. 2023, arXiv:2310.04378: the boundary condition's scale of time and of data.
_LCM_TIME, _LCM_DATA = 10.0, 0.5


@dataclass(frozen=True, slots=True)
class _Grid:
    """A grid with what solvers ask of it."""

    times: Sequence[float]
    sigmas: Sequence[float]
    time_of: Callable[[float], float]
    predicts_noise: bool
    #: The first sample is nothing but noise: α = 0.
    is_pure: bool
    #: The solver divides by α: a very small one stands for none.
    divides: bool = False

    def __len__(self) -> int:
        return len(self.times)

    def alpha(self, index: int) -> float:
        if index == 0 and self.is_pure and not self.divides:
            return 0.0
        return 1 / math.sqrt(1 + self.sigmas[index] ** 2)

    def spread(self, index: int) -> float:
        """s = √(1 - α²)."""
        return math.sqrt(1 - self.alpha(index) ** 2)

    def at(self, index: int, advance: Terms, correct: Terms | None = None) -> Evaluation:
        """An evaluation in σ-space at a point of the grid, with which a step ends."""
        sigma = self.sigmas[index]
        return self.between(self.times[index], sigma, advance, index + 1, correct)

    def between(
        self, time: float, sigma: float, advance: Terms, step: int, correct: Terms | None = None
    ) -> Evaluation:
        square = sigma**2 + 1
        root = math.sqrt(square)
        clean = (1.0, -sigma) if self.predicts_noise else (1 / square, -sigma / root)
        return Evaluation(
            time=time, scale=1 / root, clean=clean, advance=advance, step=step, correct=correct
        )

    def scaled(self, index: int, advance: Terms, step: int | None = None) -> Evaluation:
        """An evaluation in α-space."""
        alpha, spread = self.alpha(index), self.spread(index)
        clean = (1 / alpha, -spread / alpha) if self.predicts_noise else (alpha, -spread)
        done = index + 1 if step is None else step
        return Evaluation(
            time=self.times[index], scale=1.0, clean=clean, advance=advance, step=done
        )


def plan(
    solver: Solver, grid: Grid, prediction: Prediction, time_of: Callable[[float], float]
) -> SamplingPlan:
    """``time_of``: the timestep of a σ, for evaluations between the grid's points."""
    points = _Grid(
        grid.timesteps, grid.sigmas, time_of, prediction == "epsilon", grid.is_pure_noise,
        divides=solver == "plms",
    )  # fmt: skip
    evaluations = _SOLVERS[solver](points)
    begin = 1.0 if solver in _IN_ALPHA_SPACE else math.sqrt(grid.sigmas[0] ** 2 + 1)
    return SamplingPlan(begin, evaluations)


def _to(ratio: float, noise: float = 0.0) -> Terms:
    return Terms({0: ratio}, {0: 1 - ratio}, noise)


def _ancestral(sigma: float, target: float) -> tuple[float, float]:
    """(σ to step down to, σ of fresh noise): together they reach ``target``."""
    up = min(target, math.sqrt(max(0.0, target**2 * (sigma**2 - target**2) / sigma**2)))
    return math.sqrt(max(0.0, target**2 - up**2)), up


def _euler(points: _Grid) -> list[Evaluation]:
    sigmas = points.sigmas
    return [points.at(i, _to(sigmas[i + 1] / sigmas[i])) for i in range(len(points))]


def _euler_ancestral(points: _Grid) -> list[Evaluation]:
    evaluations = []
    for i in range(len(points)):
        down, up = _ancestral(points.sigmas[i], points.sigmas[i + 1])
        evaluations.append(points.at(i, _to(down / points.sigmas[i], up)))
    return evaluations


def _heun(points: _Grid) -> list[Evaluation]:
    """The trapezoidal rule: the slope's mean at both ends of a step."""
    evaluations = []
    for i in range(len(points)):
        sigma, target = points.sigmas[i], points.sigmas[i + 1]
        evaluations.append(points.at(i, _to(target / sigma)))
        if target:
            first, second = (target - sigma) / (2 * sigma), (target - sigma) / (2 * target)
            mean = Terms({1: 1 + first, 0: second}, {1: -first, 0: -second})
            evaluations.append(points.between(points.times[i + 1], target, mean, i + 1))
    return evaluations


def _midpoint(points: _Grid, *, ancestral: bool) -> list[Evaluation]:
    """The slope in the middle, on a logarithmic scale."""
    evaluations = []
    for i in range(len(points)):
        sigma, target = points.sigmas[i], points.sigmas[i + 1]
        down, up = _ancestral(sigma, target) if ancestral else (target, 0.0)
        if not target:
            evaluations.append(points.at(i, _to(0.0)))
            continue
        middle = math.sqrt(sigma * down)
        evaluations.append(points.at(i, _to(middle / sigma)))
        slope = (down - sigma) / middle
        step = Terms({1: 1.0, 0: slope}, {0: -slope}, up)
        evaluations.append(points.between(points.time_of(middle), middle, step, i + 1))
    return evaluations


def _dpmpp_sde(points: _Grid) -> list[Evaluation]:
    """DPM-Solver++(2S) with noise at the middle and at the end (k-diffusion's ``dpmpp_sde``)."""
    evaluations = []
    for i in range(len(points)):
        sigma, target = points.sigmas[i], points.sigmas[i + 1]
        if not target:
            evaluations.append(points.at(i, _to(0.0)))
            continue
        middle = math.sqrt(sigma * target)
        down, up = _ancestral(sigma, middle)
        evaluations.append(points.at(i, _to(down / sigma, up)))
        down, up = _ancestral(sigma, target)
        step = Terms({1: down / sigma}, {0: 1 - down / sigma}, up)
        evaluations.append(points.between(points.time_of(middle), middle, step, i + 1))
    return evaluations


def _lms(points: _Grid) -> list[Evaluation]:
    """Linear multistep: the last slopes' polynomial, integrated over the step."""
    evaluations = []
    for i in range(len(points)):
        order = min(i + 1, _LMS_ORDER)
        nodes = [points.sigmas[i - back] for back in range(order)]
        samples, clean = {0: 1.0}, dict[int, float]()
        for back, node in enumerate(nodes):
            others = [other for other in nodes if other != node]
            basis = np.poly1d(others, r=True) / math.prod(node - other for other in others)
            integral = np.polyint(basis)
            weight = float(integral(points.sigmas[i + 1]) - integral(points.sigmas[i])) / node
            samples[back] = samples.get(back, 0.0) + weight
            clean[back] = -weight
        evaluations.append(points.at(i, Terms(samples, clean)))
    return evaluations


def _dpmpp_2m(points: _Grid, *, sde: bool) -> list[Evaluation]:
    """DPM-Solver++(2M), arXiv:2211.01095; the first and the last step are of first order."""
    evaluations = []
    for i in range(len(points)):
        sigma, target = points.sigmas[i], points.sigmas[i + 1]
        ratio, noise = target / sigma, 0.0
        if sde:
            noise = target * math.sqrt(1 - ratio**2)
            ratio = ratio**2
        clean = {0: 1 - ratio}
        if i and target:
            back = math.log(points.sigmas[i - 1] / sigma) / math.log(sigma / target)
            clean = {0: (1 - ratio) * (1 + 0.5 / back), 1: -(1 - ratio) * 0.5 / back}
        evaluations.append(points.at(i, Terms({0: ratio}, clean, noise if target else 0.0)))
    return evaluations


def _dpm_singlestep(points: _Grid) -> list[Evaluation]:
    """DPM-Solver++(2S) over pairs of the grid's steps; the last is of first order."""
    count, evaluations = len(points), []
    for i in range(count):
        sigma, target = points.sigmas[i], points.sigmas[i + 1]
        if i % 2 == 0 or i == count - 1:
            evaluations.append(points.at(i, _to(target / sigma)))
            continue
        start = points.sigmas[i - 1]
        ratio = target / start
        part = math.log(start / sigma) / math.log(start / target)
        change = (1 - ratio) * 0.5 / part
        step = Terms({1: ratio}, {1: 1 - ratio - change, 0: change})
        evaluations.append(points.at(i, step))
    return evaluations


def _unipc(points: _Grid) -> list[Evaluation]:
    """UniPC-2 with B₂(h) = eʰ - 1, on clean images (arXiv:2302.04867)."""
    count, evaluations = len(points), []
    last_order = 0
    for i in range(count):
        correct = _unipc_corrector(points, i, last_order) if i else None
        order = min(2, count - i, i + 1)
        sigma, target = points.sigmas[i], points.sigmas[i + 1]
        ratio = target / sigma
        clean = {0: 1 - ratio}
        if order == 2:
            back = math.log(sigma / points.sigmas[i - 1]) / math.log(sigma / target)
            change = (1 - ratio) * 0.5 / back
            clean = {0: 1 - ratio - change, 1: change}
        evaluations.append(points.at(i, Terms({0: ratio}, clean), correct))
        last_order = order
    return evaluations


def _unipc_corrector(points: _Grid, i: int, order: int) -> Terms:
    """Repeat the step to point ``i``, now that its clean image is predicted."""
    start, sigma = points.sigmas[i - 1], points.sigmas[i]
    ratio = sigma / start
    step = math.log(start / sigma)  # h
    scale = 1 - ratio  # -B(h)
    if order == 1:
        return Terms({1: ratio}, {1: scale * 0.5, 0: scale * 0.5})
    back = math.log(start / points.sigmas[i - 2]) / step
    first = math.expm1(-step) / -step - 1
    second = first / -step - 0.5
    right = np.array([first / -scale, 2 * second / -scale])
    weights = np.linalg.solve(np.array([[1.0, 1.0], [back, 1.0]]), right)
    older, newest = scale * float(weights[0]) / back, scale * float(weights[1])
    return Terms({1: ratio}, {1: scale - older - newest, 2: older, 0: newest})


def _ddim(points: _Grid) -> list[Evaluation]:
    """DDIM without noise: Euler's method in α-space."""
    return [points.scaled(i, _transfer(points, i, i + 1)) for i in range(len(points))]


def _transfer(points: _Grid, i: int, j: int) -> Terms:
    ratio = points.spread(j) / points.spread(i)
    return Terms({0: ratio}, {0: points.alpha(j) - points.alpha(i) * ratio})


def _ddpm(points: _Grid) -> list[Evaluation]:
    """The posterior's mean and its noise (Ho et al. 2020, arXiv:2006.11239, equation 7)."""
    evaluations = []
    for i in range(len(points)):
        bar, after = points.alpha(i) ** 2, points.alpha(i + 1) ** 2
        beta = 1 - bar / after
        sample = math.sqrt(bar / after) * (1 - after) / (1 - bar)
        noise = math.sqrt((1 - after) / (1 - bar) * beta)
        step = Terms({0: sample}, {0: math.sqrt(after) * beta / (1 - bar)}, noise)
        evaluations.append(points.scaled(i, step))
    return evaluations


def _plms(points: _Grid) -> list[Evaluation]:
    """PNDM without Runge-Kutta (arXiv:2202.09778): the first step is taken twice."""
    evaluations: list[Evaluation] = []
    #: Grid points of the evaluations so far, and which of them count.
    places: list[int] = []
    kept: list[int] = []
    for k in range(len(points) + 1 if len(points) > 1 else 1):
        place = k if k == 0 else k - 1 if k > 1 else 1
        places.append(place)
        if k == 1:
            counted, start = [1, 0], 0
            weights: tuple[float, ...] = (0.5, 0.5)
        else:
            kept = [*kept, k][-4:]
            weights, counted = _ADAMS_BASHFORTH[len(kept) - 1], kept[::-1]
            start = k
        begin = places[start] if k != 1 else 0
        end = 1 if k <= 1 else place + 1
        samples, clean = {k - start: points.alpha(end) / points.alpha(begin)}, dict[int, float]()
        change = points.spread(end) - points.spread(begin) * samples[k - start]
        for weight, j in zip(weights, counted, strict=True):
            share = change * weight / points.spread(places[j])
            samples[k - j] = samples.get(k - j, 0.0) + share
            clean[k - j] = clean.get(k - j, 0.0) - share * points.alpha(places[j])
        done = max(1, k) if k < 2 else place + 1
        evaluations.append(points.scaled(place, Terms(samples, clean), done))
    return evaluations


def _lcm(points: _Grid) -> list[Evaluation]:
    """Latent consistency: jump to the clean image, then back to the next noise level."""
    evaluations = []
    for i in range(len(points)):
        square = (_LCM_TIME * points.times[i]) ** 2 + _LCM_DATA**2
        skip, out = _LCM_DATA**2 / square, _LCM_TIME * points.times[i] / math.sqrt(square)
        is_last = i == len(points) - 1
        alpha, noise = (1.0, 0.0) if is_last else (points.alpha(i + 1), points.spread(i + 1))
        evaluations.append(points.scaled(i, Terms({0: alpha * skip}, {0: alpha * out}, noise)))
    return evaluations


_SOLVERS: Mapping[Solver, Callable[[_Grid], list[Evaluation]]] = {
    "ddim": _ddim,
    "ddpm": _ddpm,
    "dpm2": lambda points: _midpoint(points, ancestral=False),
    "dpm2_ancestral": lambda points: _midpoint(points, ancestral=True),
    "dpm_singlestep": _dpm_singlestep,
    "dpmpp_2m": lambda points: _dpmpp_2m(points, sde=False),
    "dpmpp_2m_sde": lambda points: _dpmpp_2m(points, sde=True),
    "dpmpp_sde": _dpmpp_sde,
    "euler": _euler,
    "euler_ancestral": _euler_ancestral,
    "heun": _heun,
    "lcm": _lcm,
    "lms": _lms,
    "plms": _plms,
    "unipc": _unipc,
}
_IN_ALPHA_SPACE: frozenset[Solver] = frozenset({"ddim", "ddpm", "lcm", "plms"})
#: They end at the least noise that the models are trained on, not at none.
ENDS_NOISY: frozenset[Solver] = frozenset({"ddim", "plms"})
