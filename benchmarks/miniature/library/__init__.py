"""The public library's training scripts, one per asset."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from benchmarks.miniature.base import Miniature

#: Arguments: working folder, base, file to write.
Train = Callable[[Path, Miniature, Path], None]


def trainer(name: str) -> Train:
    """Return an asset's ``train``."""
    train: Train = import_module(f"{__name__}.{name}").train
    return train


NAMES = ("night", "heart", "dots", "outline", "lagoon", "mascot", "pixel", "sepia")
