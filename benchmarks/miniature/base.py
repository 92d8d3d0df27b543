"""The shipped miniature as plain modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from assets.content import Component
from assets.formats.tensors import PlannedTensor, write_tensors
from benchmarks.miniature import text, unet, vae
from serving.engine.modules import published_names
from serving.miniature.model import TOKEN_EMBEDDING, weights

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel


DEFAULT_FOLDER = Path("build/miniature")


@dataclass(frozen=True, slots=True)
class Miniature:
    """The four modules in float32, without gradients."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoders: Mapping[Component, CLIPTextModel]


def load_base() -> Miniature:
    encoders = {component: text.build(component) for component in text.ENCODERS}
    base = Miniature(unet.build(), vae.build(), encoders)
    load("unet", base.unet)
    load("vae", base.vae)
    for component, module in encoders.items():
        load(component, module)
    return base


@torch.no_grad()
def load(component: Component, module: Any) -> None:
    """Load a component's shipped weights and freeze it."""
    tensors = weights(component)
    parameters = dict(module.named_parameters())
    for name, published in published_names(component, module).items():
        parameters[name].copy_(tensors[published])
    module.requires_grad_(False)
    module.eval()


def export(component: Component, module: Any, path: Path) -> None:
    """Write float16 parameters under published names, without token embeddings (regenerated from a
    seed)."""
    tensors = {
        published: module.get_parameter(name).detach().half()
        for name, published in published_names(component, module).items()
        if published != TOKEN_EMBEDDING
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    planned = {
        name: PlannedTensor("F16", tuple(tensor.shape), lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in tensors.items()
    }
    write_tensors(path, planned, {})
