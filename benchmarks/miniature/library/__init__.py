"""The public library, an asset a file: each is trained on the tiny world by its own script."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from benchmarks.miniature.base import Base

#: (folder to work in, base, file to write)
Train = Callable[[Path, Base, Path], None]


def trainer(name: str) -> Train:
    """The ``train`` function of an asset's script."""
    train: Train = import_module(f"{__name__}.{name}").train
    return train


NAMES = ("night", "heart", "dots", "outline", "lagoon", "mascot", "pixel", "sepia")
