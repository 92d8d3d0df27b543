"""The model's modules: built on the meta device and bound to the working weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, assert_never

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from assets.content import MODEL_COMPONENTS, Component
from assets.families.config import Configs, ModelConfig

#: (component, published name) → its working tensor
Parameters = Callable[[Component, str], torch.Tensor]


def build_modules(configs: Configs) -> dict[Component, Any]:
    """Return the modules on the meta device; patches nothing process-wide."""
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(dict(configs["unet"])),
            "text_encoder": CLIPTextModel(clip_config(configs["text_encoder"])),
            "text_encoder_2": CLIPTextModelWithProjection(clip_config(configs["text_encoder_2"])),
            "vae": AutoencoderKL.from_config(dict(configs["vae"])),
        }


def clip_config(config: ModelConfig) -> CLIPTextConfig:
    ignored = ("architectures", "torch_dtype", "transformers_version", "model_type")
    return CLIPTextConfig(**{k: v for k, v in config.items() if k not in ignored})


def published_names(component: Component, module: torch.nn.Module) -> dict[str, str]:
    """Return parameter → published name: transformers 5.6 dropped CLIPTextModel's
    ``text_model.``."""
    names = [name for name, _ in module.named_parameters()]
    match component:
        case "text_encoder" | "text_encoder_2":
            kept = ("text_model.", "text_projection.")
            return {n: n if n.startswith(kept) else f"text_model.{n}" for n in names}
        case "unet" | "vae":
            return {name: name for name in names}
        case "lora" | "textual_inversion":
            raise ValueError(f"a {component} has no module")
        case _:
            assert_never(component)


def bind_modules(
    modules: Mapping[Component, Any], parameters: Parameters, device: torch.device | str
) -> None:
    """Point parameters at working tensors; create the buffers on ``device``.

    Raises:
        NotImplementedError: a buffer other than ``position_ids``.
    """
    for component in MODEL_COMPONENTS:
        module = modules[component]
        for name, published in published_names(component, module).items():
            owner, _, leaf = name.rpartition(".")
            tensor = parameters(component, published)
            parent = module.get_submodule(owner)
            parent._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
        for name, buffer in list(module.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            if leaf != "position_ids":
                raise NotImplementedError(f"{component} has an unsupported buffer {name!r}")
            positions = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
            module.get_submodule(owner)._buffers[leaf] = positions
        module.eval()
