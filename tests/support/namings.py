"""Trainers' names of SDXL's modules, independent of the product's table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from assets.formats.names import unet_ldm_name

Spell = Callable[[str], str]
ALL = ("unet", "text_encoder", "text_encoder_2")
_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
_COMFY = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


@dataclass(frozen=True)
class Naming:
    """``spell(component, path)`` names a module by its published dotted path.

    ``reaches`` lists the nameable components.
    """

    spell: Callable[[str, str], str]
    reaches: tuple[str, ...] = ALL

    def speller(self, component: str, root: Any) -> Spell:
        """Return a function of LyCORIS's names (paths with underscores)."""
        paths = {}
        for path, _ in root.named_modules():
            published = path
            if component != "unet" and not path.startswith(("text_model", "text_projection")):
                published = f"text_model.{path}"
            paths[path.replace(".", "_")] = published
        return lambda flat: self.spell(component, paths[flat])


def _ldm(path: str) -> str:
    return unet_ldm_name(path + ".weight").removesuffix(".weight")


def _kohya_ldm(component: str, path: str) -> str:
    path = _ldm(path) if component == "unet" else path
    return _KOHYA[component] + path.replace(".", "_")


def _comfy(component: str, path: str) -> str:
    if component == "unet":
        return f"diffusion_model.{_ldm(path)}"
    return f"text_encoders.{_COMFY[component]}.transformer.{path}"


def _open_model_initiative(component: str, path: str) -> str:
    return f"unet.{_ldm(path)}" if component == "unet" else f"{_COMFY[component]}.{path}"


NAMINGS: dict[str, Naming] = {
    # kohya's scripts with diffusers' block names; OneTrainer until 2025
    "kohya": Naming(lambda component, path: _KOHYA[component] + path.replace(".", "_")),
    "kohya (LDM)": Naming(_kohya_ldm),
    "LyCORIS": Naming(lambda _, path: "lycoris_" + path.replace(".", "_"), ("unet",)),
    "diffusers": Naming(lambda component, path: f"{component}.{path}"),
    "PEFT": Naming(lambda _, path: f"base_model.model.{path}"),
    "ComfyUI": Naming(_comfy),
    "OneTrainer": Naming(_open_model_initiative),
    # diffusers' and PEFT's names of a single component, without a prefix
    "bare": Naming(lambda _, path: path),
}
