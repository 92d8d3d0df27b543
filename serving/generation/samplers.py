"""Samplers by name: a solver and its schedule. What a request costs is counted in UNet evaluations.

The words are OctoAI's. A request may choose another schedule for a word's solver, as users of A1111
do since its version 1.9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from assets.prediction import Prediction

#: First-order: one evaluation a step. ``ddpm``, ``lcm`` and those named sde or ancestral add noise.
Solver = Literal[
    "ddim", "ddpm", "dpm2", "dpm2_ancestral", "dpm_singlestep", "dpmpp_2m", "dpmpp_2m_sde",
    "dpmpp_sde", "euler", "euler_ancestral", "heun", "lcm", "lms", "plms", "unipc",
]  # fmt: skip
#: Where the steps lie. ``leading``: SDXL's own; ``multistep``: the same with one point more, which
#: is left out; ``lcm``: every so many of the 50 that LCM is trained on. From the whole noise range:
#: ``uniform`` (A1111's "Automatic"), ``trailing``, ``sgm_uniform``, ``simple``, ``beta``, and the
#: curves ``karras`` and ``exponential``.
Schedule = Literal[
    "leading", "multistep", "lcm", "uniform", "trailing", "sgm_uniform", "simple", "beta",
    "karras", "exponential",
]  # fmt: skip
Sampler = Literal[
    "PNDM", "LMS", "KLMS", "DDIM", "DDPM", "HEUN", "K_HEUN", "K_EULER", "K_EULER_ANCESTRAL",
    "DPM_SOLVER_MULTISTEP", "DPM_PLUS_PLUS_2M_KARRAS", "DPM_PLUS_PLUS_2M_SDE",
    "DPM_PLUS_PLUS_2M_SDE_KARRAS", "DPM_SINGLE", "DPM_2", "DPM_2_KARRAS", "DPM_2_ANCESTRAL",
    "DPM_2_ANCESTRAL_KARRAS", "DPM_PLUS_PLUS_SDE_KARRAS", "UNI_PC", "LCM",
]  # fmt: skip

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


@dataclass(frozen=True, slots=True)
class SamplerTraits:
    solver: Solver
    schedule: Schedule


SAMPLERS: Mapping[Sampler, SamplerTraits] = {
    "PNDM": SamplerTraits("plms", "leading"),
    "LMS": SamplerTraits("lms", "leading"),
    "KLMS": SamplerTraits("lms", "leading"),
    "DDIM": SamplerTraits("ddim", "leading"),
    "DDPM": SamplerTraits("ddpm", "leading"),
    "HEUN": SamplerTraits("heun", "leading"),
    "K_HEUN": SamplerTraits("heun", "leading"),
    "K_EULER": SamplerTraits("euler", "leading"),
    "K_EULER_ANCESTRAL": SamplerTraits("euler_ancestral", "leading"),
    "DPM_SOLVER_MULTISTEP": SamplerTraits("dpmpp_2m", "multistep"),
    "DPM_PLUS_PLUS_2M_KARRAS": SamplerTraits("dpmpp_2m", "karras"),
    "DPM_PLUS_PLUS_2M_SDE": SamplerTraits("dpmpp_2m_sde", "multistep"),
    "DPM_PLUS_PLUS_2M_SDE_KARRAS": SamplerTraits("dpmpp_2m_sde", "karras"),
    "DPM_SINGLE": SamplerTraits("dpm_singlestep", "sgm_uniform"),
    "DPM_2": SamplerTraits("dpm2", "leading"),
    "DPM_2_KARRAS": SamplerTraits("dpm2", "karras"),
    "DPM_2_ANCESTRAL": SamplerTraits("dpm2_ancestral", "leading"),
    "DPM_2_ANCESTRAL_KARRAS": SamplerTraits("dpm2_ancestral", "karras"),
    "DPM_PLUS_PLUS_SDE_KARRAS": SamplerTraits("dpmpp_sde", "karras"),
    "UNI_PC": SamplerTraits("unipc", "multistep"),
    "LCM": SamplerTraits("lcm", "lcm"),
}
#: They evaluate twice a step, but once in the last.
_TWICE: frozenset[Solver] = frozenset({"dpm2", "dpm2_ancestral", "dpmpp_sde", "heun"})
#: Of solvers that need their steps evenly in time.
_EVEN: Mapping[Solver, frozenset[Schedule]] = {
    "plms": frozenset({"leading", "multistep", "uniform", "trailing", "sgm_uniform"}),
    "lcm": frozenset({"lcm", "trailing", "sgm_uniform"}),
}


def schedule_of(sampler: Sampler, wanted: Schedule | None) -> Schedule:
    return wanted or SAMPLERS[sampler].schedule


#: They do not begin at the noisiest timestep.
LATE: frozenset[Schedule] = frozenset({"leading", "multistep"})


def refusal(
    sampler: Sampler, schedule: Schedule | None, prediction: Prediction = "epsilon"
) -> str | None:
    """Why a sampler cannot use a schedule with a model of this prediction type; None: it can."""
    if schedule in LATE and prediction == "v_prediction_zero_snr":
        return (
            f"{schedule} does not begin with nothing but noise, as this checkpoint "
            f"(v-prediction, zero terminal SNR) needs: leave the schedule out, or take trailing"
        )
    solver = SAMPLERS[sampler].solver
    allowed = _EVEN.get(solver)
    if allowed is None or schedule_of(sampler, schedule) in allowed:
        return None
    return f"{sampler} needs steps evenly in time: {', '.join(sorted(allowed))}"


def evaluations(sampler: Sampler, steps: int) -> int:
    """The UNet's evaluations for one image."""
    solver = SAMPLERS[sampler].solver
    if solver in _TWICE:
        return 2 * steps - 1
    return steps + 1 if solver == "plms" and steps > 1 else steps
