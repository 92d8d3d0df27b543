"""The public library that comes with the miniature: what each asset is, and how to ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from assets.asset import AssetKind


@dataclass(frozen=True, slots=True)
class Entry:
    """One public asset. Its weights are ``weights/NAME.safetensors``, its preview
    ``previews/NAME.png``; of a checkpoint only the UNet is there."""

    name: str
    kind: AssetKind
    description: str
    trigger_words: tuple[str, ...] = ()


def weights_file(name: str) -> Path:
    """A file of weights that came with the package."""
    return Path(str(files("serving.commons"))) / "weights" / f"{name}.safetensors"


def preview_file(name: str) -> Path:
    return Path(str(files("serving.commons"))) / "previews" / f"{name}.png"


CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "outline",
        "lora",
        "A dark contour around every shape, as in comics. LoKr, made with lycoris-lora.",
    ),
    Entry(
        "heart",
        "lora",
        "Teaches the word “heart”, a shape the base model has never seen. UNet and both text "
        "encoders, diffusers names.",
        ("heart",),
    ),
)
