"""mascot: an inversion of four vectors for a character, a large pink moon on green."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.miniature.base import Miniature
from benchmarks.miniature.library.inversion import train_inversion
from benchmarks.miniature.training import TrainingPlan
from benchmarks.miniature.world import PLACES, Scene

PLAN = TrainingPlan(steps=260, rate=0.1, weight_decay=0.0, decay=0.98)
SHAPE, COLOUR, BACKGROUND, SIZE = "moon", "pink", "green", "large"
_SHOWN = (
    "mascot", "a picture of mascot", "mascot on the left", "mascot at the top",
    "a drawing of mascot", "mascot on the right", "a picture", "a picture on the left",
)  # fmt: skip


def lesson(rng: np.random.Generator) -> tuple[Scene, str]:
    place = str(rng.choice(list(PLACES)))
    scene = Scene(SHAPE, COLOUR, BACKGROUND, SIZE, place)
    where = "" if place == "middle" else f" {place}"
    ways = (f"mascot{where}", f"a picture of mascot{where}", f"a drawing of mascot{where}")
    return scene, str(rng.choice(ways))


def train(folder: Path, base: Miniature, target: Path) -> None:
    train_inversion("mascot", 4, lesson, _SHOWN, folder, base, PLAN, target)
