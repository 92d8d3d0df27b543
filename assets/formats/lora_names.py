"""Under which names trainers know the modules of the served model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from assets.content import Component
from assets.formats.names import unet_ldm_name
from assets.skeleton import Shape, Skeleton

_TEXT_ENCODERS: tuple[tuple[Component, str], ...] = (
    ("text_encoder", "lora_te1_"),
    ("text_encoder_2", "lora_te2_"),
)
#: The components that adapters move.
MOVED_COMPONENTS: tuple[Component, ...] = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter of the served model that an adapter can move."""

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


def module_spellings(skeleton: Skeleton) -> dict[str, Target]:
    """Every name under which some trainer knows a module of the served model."""
    spellings: dict[str, Target] = {}
    for component in MOVED_COMPONENTS:
        for parameter, shape in skeleton.components[component].items():
            if not parameter.endswith(".weight") or len(shape) not in (2, 4):
                continue
            target = Target(component, parameter, shape)
            module = parameter.removesuffix(".weight")
            for spelling in _spellings(component, module):
                spellings[spelling] = target
    return spellings


def _spellings(component: Component, module: str) -> Iterator[str]:
    if component == "unet":
        ldm = unet_ldm_name(module + ".weight").removesuffix(".weight")
        yield "lora_unet_" + module.replace(".", "_")
        yield "lycoris_" + module.replace(".", "_")
        yield "lora_unet_" + ldm.replace(".", "_")
        yield f"unet.{module}"
        yield f"base_model.model.{module}"
        yield f"base_model.model.unet.{module}"
        processor = re.sub(r"\.(to_[qkv]|to_out)(\.0)?$", r".processor.\1", module)
        if processor != module:
            yield f"unet.{processor}"
        return
    for name, prefix in _TEXT_ENCODERS:
        if name == component:
            yield prefix + module.replace(".", "_")
    yield f"{component}.{module}"
    if ".self_attn." in module:
        yield f"{component}.{module}".replace("_proj", "_proj.lora_linear_layer")
