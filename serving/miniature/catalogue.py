"""The catalogue of the miniature's public library."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from assets.asset import AssetKind


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One public asset: ``weights/NAME.safetensors`` (only the UNet's for a checkpoint) and
    ``previews/NAME.png``."""

    name: str
    kind: AssetKind
    description: str
    trigger_words: tuple[str, ...] = ()


def weights_file(name: str) -> Path:
    return Path(str(files("serving.miniature"))) / "weights" / f"{name}.safetensors"


def preview_file(name: str) -> Path:
    return Path(str(files("serving.miniature"))) / "previews" / f"{name}.png"


CATALOGUE: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        "night",
        "lora",
        "It is night: every background is black, whatever was asked for. UNet only, kohya names.",
    ),
    CatalogueEntry(
        "dots",
        "lora",
        "Polka dots on every background. Linear layers and convolutions (LoCon), kohya names.",
    ),
    CatalogueEntry(
        "outline",
        "lora",
        "A dark contour around every shape, as in comics. LoKr, made with lycoris-lora.",
    ),
    CatalogueEntry(
        "heart",
        "lora",
        "Teaches the word “heart”, a shape the base model has never seen. UNet and both text "
        "encoders, diffusers names.",
        ("heart",),
    ),
    CatalogueEntry(
        "lagoon",
        "textual_inversion",
        "One vector: a palette of its own, cyan on purple, whatever the shape.",
        ("lagoon",),
    ),
    CatalogueEntry(
        "mascot",
        "textual_inversion",
        "Four vectors: one particular character, a large pink moon on green.",
        ("mascot",),
    ),
    CatalogueEntry(
        "pixel", "checkpoint", "Another drawing style: pixel art on a grid of 16 by 16."
    ),
    CatalogueEntry("sepia", "vae", "A decoder that prints on old paper: every picture in sepia."),
)
