"""The miniature: SDXL's exact topology at small widths, made from a seed, under 25 MB.

It goes through the very same import and loading as the real thing, so whatever
loads here loads SDXL. Stock diffusers opens the folder, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from assets.content import MODEL_COMPONENTS, Component
from assets.formats.tensors import Planned, write_tensors
from assets.sdxl import SDXL_CONFIGS, SDXL_SCHEDULE, skeleton_of
from assets.skeleton import Shape
from serving.engine.vocabulary import END, write_tokenizer

SEED = 20_240_801

_WIDTHS: Mapping[Component, Mapping[str, Any]] = {
    "unet": {
        "block_out_channels": [32, 48, 64],
        "attention_head_dim": [2, 3, 4],
        "norm_num_groups": 16,
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 6 * 16 + 32,
        "sample_size": 16,
    },
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "projection_dim": 32,
    },
    "text_encoder_2": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "projection_dim": 32,
    },
    "vae": {"block_out_channels": [16, 24, 32, 32], "norm_num_groups": 8, "sample_size": 128},
}

MINIATURE_CONFIGS: Mapping[Component, Mapping[str, Any]] = {
    component: {**SDXL_CONFIGS[component], **_WIDTHS[component]} for component in MODEL_COMPONENTS
}

_FILES: Mapping[Component, str] = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


def initial(name: str, shape: Shape, seed: int) -> torch.Tensor:
    """A parameter's first value (float16), a function of its name, shape and the seed alone.

    Embeddings are wide, because the usual 0.02 drowns the words at this size.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "little"))
    if name.endswith("token_embedding.weight"):
        scale = 1.0
    elif name.endswith("position_embedding.weight"):
        scale = 0.3
    elif len(shape) == 1:
        if name.endswith(".weight"):
            return torch.ones(shape, dtype=torch.float16)
        scale = 0.02
    else:
        fan_in = 1
        for extent in shape[1:]:
            fan_in *= extent
        scale = fan_in**-0.5
    return (torch.randn(shape, generator=generator) * scale).to(torch.float16)


def write_miniature(folder: Path, seed: int = SEED) -> Path:
    """The model as a diffusers folder; at once when it is there already.

    The folder appears whole or not at all.
    """
    if (folder / "model_index.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    skeleton = skeleton_of(MINIATURE_CONFIGS)
    for component in MODEL_COMPONENTS:
        target = partial / component
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(MINIATURE_CONFIGS[component], indent=1))
        planned = {
            name: _planned(f"{component}/{name}", shape, seed)
            for name, shape in skeleton.components[component].items()
        }
        write_tensors(target / _FILES[component], planned, {"format": "pt"})
    write_tokenizer(partial / "tokenizer", END)
    write_tokenizer(partial / "tokenizer_2", "!")
    (partial / "scheduler").mkdir()
    schedule = {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "set_alpha_to_one": False,
        **SDXL_SCHEDULE,
    }
    (partial / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule, indent=1))
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (partial / "model_index.json").write_text(json.dumps(index, indent=1))
    try:
        partial.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(partial)
    return folder


def _planned(name: str, shape: Shape, seed: int) -> Planned:
    return Planned("F16", shape, lambda: initial(name, shape, seed))
