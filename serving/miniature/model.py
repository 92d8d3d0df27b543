"""The miniature: SDXL's exact topology at small widths, trained on a tiny world of shapes.

SDXL's import and loading code and stock diffusers open it. ``benchmarks/miniature`` trained it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from assets.content import MODEL_COMPONENTS, Component
from assets.families.config import Configs
from assets.families.schema import Shape
from assets.families.sdxl import SDXL_CONFIGS, SDXL_SCHEDULE, schema_of
from assets.formats.tensors import PlannedTensor, TensorFile, write_tensors
from serving.engine.vocabulary import END, write_tokenizer
from serving.errors import CommonsDamaged
from serving.miniature.catalogue import weights_file

_SEED = 20_240_801
TOKEN_EMBEDDING = "text_model.embeddings.token_embedding.weight"
#: sha256 of the token embeddings, float16, little-endian, row by row.
TOKEN_DIGESTS: Mapping[Component, str] = {
    "text_encoder": "c76ed42aa524a2aeef4d75980a787e68bb99bf1f08deaa43e34c89ff7f9d06db",
    "text_encoder_2": "a3054396a25695deabee65fd4ca448f2db9ca154e98b8cd592d8185d79cac4ce",
}

_WIDTHS: Configs = {
    "unet": {
        "block_out_channels": [32, 64, 64],
        "attention_head_dim": [2, 4, 4],
        "norm_num_groups": 16,
        "cross_attention_dim": 32 + 64,
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 6 * 32 + 64,
        "sample_size": 16,
    },
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "projection_dim": 32,
    },
    "text_encoder_2": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "projection_dim": 64,
    },
    "vae": {"block_out_channels": [16, 24, 32, 48], "norm_num_groups": 8, "sample_size": 128},
}

MINIATURE_CONFIGS: Configs = {
    component: {**SDXL_CONFIGS[component], **_WIDTHS[component]} for component in MODEL_COMPONENTS
}

_FILES: Mapping[Component, str] = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


def weights(component: Component) -> dict[str, torch.Tensor]:
    """Return a component's trained parameters (float16), by published name.

    Raises:
        CommonsDamaged: generated token embeddings differ from those used in training.
    """
    with TensorFile(weights_file(component)) as file:
        tensors = {name: file.read(name) for name in file.header.tensors}
    if component in TOKEN_DIGESTS:
        shape = schema_of(MINIATURE_CONFIGS).components[component][TOKEN_EMBEDDING]
        rows = tensors[TOKEN_EMBEDDING] = token_rows(component, shape)
        digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
        if digest != TOKEN_DIGESTS[component]:
            raise CommonsDamaged(
                f"{component}: the generated token embeddings have sha256 {digest}; the model "
                f"was trained with {TOKEN_DIGESTS[component]}"
            )
    return tensors


@cache
def identity() -> str:
    """Return 12 hexadecimal digits that identify the weights files."""
    digest = hashlib.sha256()
    for component in MODEL_COMPONENTS:
        digest.update(weights_file(component).read_bytes())
    return digest.hexdigest()[:12]


def write_miniature(folder: Path) -> Path:
    """Write a diffusers folder, atomically, or keep an existing one."""
    if (folder / "model_index.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    schema = schema_of(MINIATURE_CONFIGS)
    for component in MODEL_COMPONENTS:
        target = unfinished / component
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(MINIATURE_CONFIGS[component], indent=1))
        tensors = weights(component)
        planned = {
            name: PlannedTensor("F16", shape, partial(tensors.__getitem__, name))
            for name, shape in schema.components[component].items()
        }
        write_tensors(target / _FILES[component], planned, {"format": "pt"})
    write_tokenizer(unfinished / "tokenizer", END)
    write_tokenizer(unfinished / "tokenizer_2", "!")
    (unfinished / "scheduler").mkdir()
    schedule = {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "set_alpha_to_one": False,
        **SDXL_SCHEDULE,
    }
    (unfinished / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule, indent=1))
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
    (unfinished / "model_index.json").write_text(json.dumps(index, indent=1))
    try:
        unfinished.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(unfinished)
    return folder


def token_rows(component: Component, shape: Shape) -> torch.Tensor:
    """Return a token embedding table (float16, standard deviation 1).

    Not shipped but generated: sums of four 16-bit integers of raw Philox bits, which NumPy
    guarantees on every machine and version.
    """
    digest = hashlib.sha256(f"{_SEED}/{component}/token_embedding".encode()).digest()
    bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    raw = np.asarray(bits.random_raw(shape[0] * shape[1]), dtype="<u8")
    sums = raw.view("<u2").reshape(*shape, 4).sum(axis=2, dtype=np.int64)
    values = (sums - 2 * 65535) / (65536 / 3**0.5)
    return torch.from_numpy(values.astype(np.float16))
