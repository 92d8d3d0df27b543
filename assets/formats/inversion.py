"""Textual inversions: canonical ``text_encoder`` [n, w₁] and ``text_encoder_2`` [n, w₂]."""

from __future__ import annotations

from typing import Any

import torch

from assets.errors import IngestRejected
from assets.formats.tensors import Planned, TensorFile
from assets.skeleton import Shape, Skeleton

MAX_VECTORS = 75
_ENCODERS = (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2"))


def convert(
    file: TensorFile, skeleton: Skeleton, prefix: str = ""
) -> tuple[dict[str, Planned], dict[str, Any]]:
    """The canonical tensors of an inversion with vectors for both text encoders, whose keys
    begin with ``prefix``.

    Raises:
        IngestRejected: an encoder's vectors are missing, of another width, or not finite.
    """
    planned: dict[str, Planned] = {}
    problems: list[str] = []
    counts: set[int] = set()
    for (key, component), width in zip(_ENCODERS, skeleton.text_widths, strict=True):
        name = prefix + key
        info = file.header.tensors.get(name)
        if info is None:
            problems.append(f"no vectors for {component} (key {name!r})")
            continue
        shape = info.shape if len(info.shape) == 2 else (1, *info.shape)
        if len(shape) != 2 or shape[1] != width:
            problems.append(
                f"{name!r} is {list(info.shape)}; the served model needs vectors of width {width}"
            )
            continue
        if shape[0] > MAX_VECTORS:
            problems.append(
                f"{name!r} holds {shape[0]} vectors; at most {MAX_VECTORS} fit a prompt"
            )
            continue
        counts.add(shape[0])
        planned[component] = _vectors(file, name, info.dtype, shape)
    if len(counts) > 1:
        problems.append(f"{prefix}clip_l and {prefix}clip_g hold different numbers of vectors")
    if problems:
        raise IngestRejected(*problems)
    return planned, {"vectors": counts.pop()}


def _vectors(file: TensorFile, name: str, dtype: str, shape: Shape) -> Planned:
    def values() -> torch.Tensor:
        tensor = file.read(name)
        if not torch.isfinite(tensor).all():
            raise IngestRejected(f"{name!r} holds values that are not finite (NaN or infinite)")
        return tensor.reshape(shape)

    return Planned(dtype, shape, values)
