"""dots: a LoRA on linear layers and convolutions (LoCon), saved in kohya's names."""

from __future__ import annotations

from pathlib import Path

from benchmarks.miniature.base import Miniature
from benchmarks.miniature.library.lora import attach, save_kohya, train_lora
from benchmarks.miniature.training import TrainingPlan

PLAN = TrainingPlan(steps=480, rate=2e-3, weight_decay=0.0)
TARGETS = r".*(to_q|to_k|to_v|to_out\.0|conv1|conv2|conv_shortcut|samplers\.0\.conv)|conv_out"


def train(folder: Path, base: Miniature, target: Path) -> None:
    attach(base.unet, TARGETS, rank=8)
    train_lora("dots", folder, base, "dots", PLAN)
    save_kohya(base.unet, target)
