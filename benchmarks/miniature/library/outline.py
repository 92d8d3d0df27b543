"""outline: a LoKr on the whole UNet, convolutions included, made with lycoris-lora."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.miniature.base import Miniature
from benchmarks.miniature.library.lora import BATCH, LESSONS
from benchmarks.miniature.training import TrainingPlan
from benchmarks.miniature.training import train as run
from benchmarks.miniature.unet import (
    PREVIEWED,
    encode_words,
    generate,
    lesson_loss,
    lessons,
    save_row,
)

PLAN = TrainingPlan(steps=900, rate=4e-3, weight_decay=0.0)
TARGETS = [r".*attn\d.*", r".*ff\.net.*", r".*resnets.*conv.*", r".*samplers.*conv", "conv_out"]


def train(folder: Path, base: Miniature, target: Path) -> None:
    from lycoris import LycorisNetwork, create_lycoris

    LycorisNetwork.apply_preset(
        {"target_module": [], "target_name": TARGETS, "lora_prefix": "lora_unet"}
    )
    torch.manual_seed(51)
    network = create_lycoris(
        base.unet, 1.0, algo="lokr", linear_dim=4, linear_alpha=4.0, conv_dim=8, conv_alpha=8.0,
        factor=4,
    )  # fmt: skip
    network.apply_to()
    taught = lessons(base.encoders, base.vae, LESSONS, seed=61, look="outline")
    empty, shown = (encode_words(base.encoders, texts) for texts in ([""], PREVIEWED))
    run(
        "outline", folder, [p for p in network.parameters() if p.requires_grad],
        lambda _: lesson_loss(base.unet, taught, empty, BATCH), PLAN,
        lambda path: save_row(generate(base.unet, base.vae, shown), path),
    )  # fmt: skip
    tensors = {name: value.detach().half() for name, value in network.state_dict().items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, target)
