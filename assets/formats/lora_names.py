"""Map trainers' module names to the served model's parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from assets.content import Component
from assets.families.schema import ParameterSchema, Shape
from assets.formats.names import unet_ldm_name

#: kohya's prefix, ComfyUI's name.
_TEXT_ENCODERS: Mapping[Component, tuple[str, str]] = {
    "text_encoder": ("lora_te1_", "clip_l"),
    "text_encoder_2": ("lora_te2_", "clip_g"),
}
#: Appended to a module's name for its bias.
BIAS = "#bias"
ADAPTED_COMPONENTS: tuple[Component, ...] = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, slots=True)
class TargetModule:
    """A parameter that an adapter can change."""

    component: Component
    parameter: str
    shape: Shape

    @property
    def name(self) -> str:
        return f"{self.component}/{self.parameter}"

    @property
    def out_features(self) -> int:
        return self.shape[0]

    @property
    def in_features(self) -> int:
        size = 1
        for extent in self.shape[1:]:
            size *= extent
        return size


def module_spellings(schema: ParameterSchema) -> dict[str, tuple[TargetModule, ...]]:
    """Return the targets by module name (plus ``BIAS``: its bias).

    A name without a component can have two, one per text encoder; shapes decide.
    """
    spellings: dict[str, tuple[TargetModule, ...]] = {}
    for component in ADAPTED_COMPONENTS:
        for parameter, shape in schema.components[component].items():
            module, _, leaf = parameter.rpartition(".")
            if leaf not in ("weight", "bias"):
                continue
            target = TargetModule(component, parameter, shape)
            for spelling in dict.fromkeys(_spellings(component, module)):
                key = spelling + (BIAS if leaf == "bias" else "")
                spellings[key] = (*spellings.get(key, ()), target)
    return spellings


def _spellings(component: Component, module: str) -> Iterator[str]:
    if component == "unet":
        yield from _unet_spellings(module)
        return
    kohya, comfy = _TEXT_ENCODERS[component]
    yield kohya + module.replace(".", "_")
    yield f"{comfy}.{module}"  # OneTrainer since 2025 (Open Model Initiative)
    yield f"{comfy}.transformer.{module}"
    yield f"text_encoders.{comfy}.transformer.{module}"
    # transformers >= 5.6 drops text_model., so diffusers saves short names.
    for name in (module, module.removeprefix("text_model.")):
        yield f"{component}.{name}"
        yield f"{component}.base_model.model.{name}"
        yield f"base_model.model.{component}.{name}"
        yield f"base_model.model.{name}"
    yield module


def _unet_spellings(module: str) -> Iterator[str]:
    ldm = unet_ldm_name(module + ".weight").removesuffix(".weight")
    yield "lora_unet_" + module.replace(".", "_")
    yield "lycoris_" + module.replace(".", "_")
    yield "lora_unet_" + ldm.replace(".", "_")
    yield f"unet.{ldm}"  # OneTrainer since 2025 (Open Model Initiative)
    yield f"diffusion_model.{ldm}"
    yield f"model.diffusion_model.{ldm}"
    variants = [module]
    # Of diffusers < 0.20 and Replicate's trainer.
    processor = re.sub(r"\.(to_[qkv]|to_out)(\.0)?$", r".processor.\1", module)
    if processor != module:
        variants.append(processor)
    for name in variants:
        yield name
        yield f"unet.{name}"
        yield f"unet.base_model.model.{name}"
        yield f"base_model.model.{name}"
        yield f"base_model.model.unet.{name}"
