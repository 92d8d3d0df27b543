"""night: a LoRA on the UNet's attention and feed-forward layers, saved in kohya's names."""

from __future__ import annotations

from pathlib import Path

from benchmarks.miniature.base import Miniature
from benchmarks.miniature.library.lora import attach, save_kohya, train_lora
from benchmarks.miniature.training import TrainingPlan

PLAN = TrainingPlan(steps=320, rate=2e-3, weight_decay=0.0)
TARGETS = r".*(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)"


def train(folder: Path, base: Miniature, target: Path) -> None:
    attach(base.unet, TARGETS, rank=4)
    train_lora("night", folder, base, "night", PLAN)
    save_kohya(base.unet, target)
