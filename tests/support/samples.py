"""Sample assets with seeded random weights, in common formats (kohya; clip_l and clip_g)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from assets.content import Component
from assets.families.schema import ParameterSchema
from assets.formats.header import read_header

_PROJECTIONS = re.compile(r"\.(attn\d|self_attn)\..*\.weight$")
_LINEARS = re.compile(r"(\.attentions\.|\.self_attn\.|\.mlp\.).*\.weight$")


def reached_by_trainers(name: str) -> bool:
    """Whether "all linear layers" usually includes this parameter."""
    return _LINEARS.search(name) is not None


def write_kohya_lora(
    path: Path,
    schema: ParameterSchema,
    *,
    rank: int = 4,
    strength: float = 0.6,
    seed: int = 1,
    only: str = "",
    alpha: float | None = None,
    linears: bool = False,
) -> Path:
    """Write a LoRA with kohya's names on attention projections of UNet and text encoders.

    ``only`` is part of the parameters' names; ``linears`` covers trainers' usual linear layers
    (722, 72 and 192).
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    prefixes: tuple[tuple[Component, str], ...] = (
        ("unet", "lora_unet_"),
        ("text_encoder", "lora_te1_"),
        ("text_encoder_2", "lora_te2_"),
    )
    for component, prefix in prefixes:
        for name, shape in schema.components[component].items():
            pattern = _LINEARS if linears else _PROJECTIONS
            if not (pattern.search(name) and len(shape) == 2 and only in f"{component}.{name}"):
                continue
            module = prefix + name.removesuffix(".weight").replace(".", "_")
            scale = strength / (shape[1] * rank) ** 0.5
            down = torch.randn(rank, shape[1], generator=generator)
            up = torch.randn(shape[0], rank, generator=generator) * scale
            tensors[f"{module}.lora_down.weight"] = down.half()
            tensors[f"{module}.lora_up.weight"] = up.half()
            tensors[f"{module}.alpha"] = torch.tensor(float(alpha or rank)).half()
    return _write(path, tensors)


def write_wild_lora(path: Path, schema: ParameterSchema) -> Path:
    """Write a finite LoRA that works at weight 1 and ruins every image at weight 10."""
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in schema.components["unet"].items():
        if ".ff.net." in name and name.endswith(".weight"):
            module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            tensors[f"{module}.lora_down.weight"] = torch.full((1, shape[1]), 92.0).half()
            tensors[f"{module}.lora_up.weight"] = torch.full((shape[0], 1), 92.0).half()
    return _write(path, tensors)


def write_inversion(
    path: Path, schema: ParameterSchema, *, vectors: int = 2, seed: int = 2
) -> Path:
    """Write an inversion for both text encoders in A1111's format."""
    generator = torch.Generator("cpu").manual_seed(seed)
    first, second = schema.text_widths
    return _write(
        path,
        {
            "clip_l": torch.randn(vectors, first, generator=generator).half(),
            "clip_g": torch.randn(vectors, second, generator=generator).half(),
        },
    )


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def write_padded(source: Path, target: Path, size_bytes: int) -> Path:
    """Copy ``source`` and add zeros, to about ``size_bytes``.

    Stands for checkpoints' EMA copies. The zeros are sparse: they take no disk space.
    """
    header = read_header(source)
    document: dict[str, Any] = {
        name: {"dtype": i.dtype, "shape": list(i.shape), "data_offsets": [i.begin, i.end]}
        for name, i in header.tensors.items()
    }
    end = max(info.end for info in header.tensors.values())
    padding = max(0, size_bytes - source.stat().st_size)
    document["model_ema.padding"] = {
        "dtype": "U8", "shape": [padding], "data_offsets": [end, end + padding],
    }  # fmt: skip
    raw = json.dumps(document).encode()
    with open(source, "rb") as original, open(target, "wb") as file:
        original.seek(header.data_offset)
        file.write(len(raw).to_bytes(8, "little") + raw)
        shutil.copyfileobj(original, file)
        file.truncate(file.tell() + padding)
    return target
