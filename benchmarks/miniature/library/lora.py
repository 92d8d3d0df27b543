"""Helpers of the LoRA scripts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from benchmarks.miniature.base import Miniature
from benchmarks.miniature.training import TrainingPlan, train
from benchmarks.miniature.unet import (
    PREVIEWED,
    encode_words,
    generate,
    lesson_loss,
    lessons,
    save_row,
)

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


BATCH = 24
LESSONS = 1500


def attach(module: Any, targets: str, rank: int) -> None:
    """Add a trainable LoRA "default" to layers that match ``targets``."""
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=True)
    torch.manual_seed(50)
    module.add_adapter(config)


def adapter_parameters(module: Any) -> list[torch.Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def train_lora(name: str, folder: Path, base: Miniature, look: str, plan: TrainingPlan) -> None:
    """Train the UNet's trainable parameters on ``look``."""
    taught = lessons(base.encoders, base.vae, LESSONS, seed=60, look=look)
    empty, shown = (encode_words(base.encoders, texts) for texts in ([""], PREVIEWED))
    train(
        name, folder, adapter_parameters(base.unet),
        lambda _: lesson_loss(base.unet, taught, empty, BATCH), plan,
        lambda path: save_row(generate(base.unet, base.vae, shown), path),
    )  # fmt: skip


def save_kohya(unet: UNet2DConditionModel, path: Path) -> None:
    """Write kohya-ss/sd-scripts' names, by diffusers' conversion."""
    from diffusers.utils import convert_state_dict_to_kohya
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = get_peft_model_state_dict(unet)
    state = {f"unet.{name}": tensor.detach() for name, tensor in state.items()}
    kohya = {
        name.replace("lora_unet_unet_", "lora_unet_"): tensor.half().contiguous()
        for name, tensor in convert_state_dict_to_kohya(state).items()
    }
    save_file(kohya, path)
