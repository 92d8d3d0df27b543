"""Sample assets for the served model, made from a seed: what the demonstration uploads.

They are ordinary files in the formats that people have (kohya names; clip_l and
clip_g; a single-file checkpoint), so they take the way that any upload takes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from assets.content import MODEL_COMPONENTS, Component
from assets.formats.names import single_file_name
from assets.formats.tensors import Planned, write_tensors
from assets.skeleton import Shape, Skeleton

Value = Callable[[Component, str, Shape], torch.Tensor]


def write_kohya_lora(
    path: Path,
    skeleton: Skeleton,
    *,
    rank: int = 4,
    strength: float = 0.6,
    seed: int = 1,
    only: str = "",
    alpha: float | None = None,
) -> Path:
    """A LoRA on every attention projection (those whose name contains ``only``) of the UNet
    and both text encoders, in kohya's names."""
    generator = torch.Generator("cpu").manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    prefixes: tuple[tuple[Component, str], ...] = (
        ("unet", "lora_unet_"),
        ("text_encoder", "lora_te1_"),
        ("text_encoder_2", "lora_te2_"),
    )
    for component, prefix in prefixes:
        for name, shape in skeleton.components[component].items():
            is_projection = ".attn" in name or ".self_attn." in name
            if not (is_projection and name.endswith(".weight") and only in f"{component}.{name}"):
                continue
            module = prefix + name.removesuffix(".weight").replace(".", "_")
            scale = strength / (shape[1] * rank) ** 0.5
            down = torch.randn(rank, shape[1], generator=generator)
            up = torch.randn(shape[0], rank, generator=generator) * scale
            tensors[f"{module}.lora_down.weight"] = down.half()
            tensors[f"{module}.lora_up.weight"] = up.half()
            tensors[f"{module}.alpha"] = torch.tensor(float(alpha or rank)).half()
    return _write(path, tensors)


def write_inversion(path: Path, skeleton: Skeleton, *, vectors: int = 2, seed: int = 2) -> Path:
    """Vectors for both text encoders, as A1111 and its kin write them."""
    generator = torch.Generator("cpu").manual_seed(seed)
    first, second = skeleton.text_widths
    return _write(
        path,
        {
            "clip_l": torch.randn(vectors, first, generator=generator).half(),
            "clip_g": torch.randn(vectors, second, generator=generator).half(),
        },
    )


def write_single_file(path: Path, skeleton: Skeleton, value: Value) -> Path:
    """A checkpoint as one file in the names that most are published in."""
    tensors: dict[str, torch.Tensor] = {}
    fused: dict[str, dict[int, torch.Tensor]] = {}
    for component in MODEL_COMPONENTS:
        for name, shape in skeleton.components[component].items():
            place = single_file_name(component, name)
            tensor = value(component, name, shape)
            if component == "vae" and ".attn_1." in place.name and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]  # a 1×1 convolution in such files
            if place.third is not None:
                fused.setdefault(place.name, {})[place.third] = tensor
            else:
                tensors[place.name] = tensor.t() if place.transposed else tensor
    for name, thirds in fused.items():
        tensors[name] = torch.cat([thirds[i] for i in range(3)])
    return _write(path, tensors)


_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16"}


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    def planned(tensor: torch.Tensor) -> Planned:
        return Planned(_NAMES[tensor.dtype], tuple(tensor.shape), lambda: tensor)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {name: planned(tensor) for name, tensor in tensors.items()}, {})
    return path
