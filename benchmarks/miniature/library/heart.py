"""heart: a LoRA on UNet and both text encoders for a new word and shape, saved by diffusers in its
own names."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.miniature.base import Miniature
from benchmarks.miniature.library.lora import BATCH, adapter_parameters, attach
from benchmarks.miniature.text import ENCODERS, tokens_of
from benchmarks.miniature.training import TrainingPlan
from benchmarks.miniature.training import train as run
from benchmarks.miniature.unet import (
    Words,
    encode_images,
    encode_words,
    generate,
    noise_loss,
    save_row,
)
from benchmarks.miniature.world import SIDE, Scene, caption, random_scene, render
from serving.engine.text import PromptTokenizer

PLAN = TrainingPlan(steps=400, rate=2e-3, weight_decay=0.0)
UNET_TARGETS = r".*(to_q|to_k|to_v|to_out\.0|ff\.net\.2|resnets\.\d\.conv1)"
TEXT_TARGETS = r".*(q_proj|k_proj|v_proj|out_proj)"
_LESSONS = 1500
_HEARTS = 0.6  # other shapes must not be forgotten
_SHOWN = (
    "a large red heart on a white background",
    "a pink heart on a black background",
    "a small yellow heart on the left on a blue background",
    "a white heart on a purple background",
    "a large red star on a white background",
    "a pink circle on a black background",
    "a cyan heart, green background",
    "a heart",
)


def train(folder: Path, base: Miniature, target: Path) -> None:
    attach(base.unet, UNET_TARGETS, rank=8)
    for encoder in base.encoders.values():
        attach(encoder, TEXT_TARGETS, rank=4)
    rng = np.random.default_rng(62)
    pixels = np.empty((_LESSONS, SIDE, SIDE, 3), np.uint8)
    texts = []
    for index in range(_LESSONS):
        scene: Scene = random_scene(rng)
        if rng.random() < _HEARTS:
            scene = replace(scene, shape="heart")
        pixels[index] = render(scene, rng)
        texts.append(caption(scene, rng))
    latents = encode_images(base.vae, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    prompts = PromptTokenizer()
    ids = {component: tokens_of(prompts, texts, component) for component in ENCODERS}

    def loss(_: int) -> torch.Tensor:
        index = torch.randint(_LESSONS, (BATCH,))
        states: list[torch.Tensor] = []
        for component in ENCODERS:
            output = base.encoders[component](ids[component][index], output_hidden_states=True)
            states.append(output.hidden_states[-2])
        context, pooled = torch.cat(states, dim=2), output.text_embeds
        has_text = (torch.rand(BATCH) >= 0.05).float()
        context, pooled = context * has_text[:, None, None], pooled * has_text[:, None]
        return noise_loss(base.unet, latents[index], context, pooled)

    def preview(path: Path) -> None:
        words: Words = encode_words(base.encoders, _SHOWN)
        save_row(generate(base.unet, base.vae, words), path)

    modules = [base.unet, *base.encoders.values()]
    run("heart", folder, [p for m in modules for p in adapter_parameters(m)], loss, PLAN, preview)
    save(base, target)


def save(base: Miniature, path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline
    from peft import get_peft_model_state_dict

    def layers(module: Any) -> dict[str, torch.Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = get_peft_model_state_dict(module)
        return {name: tensor.detach().half().contiguous() for name, tensor in state.items()}

    StableDiffusionXLPipeline.save_lora_weights(
        path.parent,
        unet_lora_layers=layers(base.unet),
        text_encoder_lora_layers=layers(base.encoders["text_encoder"]),
        text_encoder_2_lora_layers=layers(base.encoders["text_encoder_2"]),
        weight_name=path.name,
    )
