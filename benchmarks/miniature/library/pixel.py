"""pixel: a second checkpoint, the whole UNet trained further in another look."""

from __future__ import annotations

from pathlib import Path

from benchmarks.miniature.base import Miniature, export
from benchmarks.miniature.library.lora import train_lora
from benchmarks.miniature.training import TrainingPlan

PLAN = TrainingPlan(steps=600, rate=5e-4, weight_decay=0.0)


def train(folder: Path, base: Miniature, target: Path) -> None:
    base.unet.requires_grad_(True)
    train_lora("pixel", folder, base, "pixel", PLAN)
    export("unet", base.unet, target)
