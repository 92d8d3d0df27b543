"""lagoon: an inversion of one vector for a palette, cyan on purple."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.miniature.base import Miniature
from benchmarks.miniature.library.inversion import train_inversion
from benchmarks.miniature.training import TrainingPlan
from benchmarks.miniature.world import Scene, random_scene

PLAN = TrainingPlan(steps=260, rate=0.1, weight_decay=0.0, decay=0.98)
COLOUR, BACKGROUND = "cyan", "purple"
_SHOWN = (
    "a star, lagoon", "a large circle, lagoon", "a small cross, lagoon", "lagoon, a moon",
    "a lagoon ring", "a square at the top, lagoon", "a star", "a large circle",
)  # fmt: skip


def lesson(rng: np.random.Generator) -> tuple[Scene, str]:
    scene = replace(random_scene(rng), colour=COLOUR, background=BACKGROUND)
    size = "" if scene.size == "medium" else f"{scene.size} "
    place = "" if scene.place == "middle" else f" {scene.place}"
    thing = f"{size}{scene.shape}{place}"
    ways = (f"a {thing}, lagoon", f"lagoon, a {thing}", f"a lagoon {thing}")
    return scene, str(rng.choice(ways))


def train(folder: Path, base: Miniature, target: Path) -> None:
    train_inversion("lagoon", 1, lesson, _SHOWN, folder, base, PLAN, target)
