"""Textual inversions: canonical ``text_encoder`` [n, w₁] and ``text_encoder_2`` [n, w₂].

Files come with a tensor for each encoder (A1111, kohya and ComfyUI name them ``clip_l`` and
``clip_g``, diffusers' training scripts ``text_encoders_0`` and ``text_encoders_1``), or with
one tensor under ``emb_params`` or the trigger word itself: then its width says what it is.
One as wide as both encoders is cut in two; one as wide as the second alone moves that one
only, and the first reads the word as it stands. Vectors for the first alone are refused:
SD 1.5's are the same, and cannot be told from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from assets.content import Component
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema, Shape
from assets.formats.findings import Findings
from assets.formats.header import TensorInfo
from assets.formats.identify import PAIRS
from assets.formats.tensors import Planned, TensorFile

MAX_VECTORS = 75
_ENCODERS: tuple[Component, Component] = ("text_encoder", "text_encoder_2")


def convert(
    file: TensorFile, schema: ParameterSchema, findings: Findings, prefix: str = ""
) -> tuple[dict[str, Planned], dict[str, Any]]:
    """The canonical tensors of an inversion whose keys begin with ``prefix``.

    Raises:
        IngestRejected: an encoder's vectors are missing or of another width. Values that are
        not finite are among the findings once they are read.
    """
    infos = {
        key.removeprefix(prefix): info
        for key, info in file.header.tensors.items()
        if key.startswith(prefix)
    }
    for pair in PAIRS:
        if any(key in infos for key in pair):
            return _pair(file, prefix, infos, pair, schema, findings)
    if prefix or len(infos) != 1:
        raise IngestRejected(f"no vectors in it (keys {prefix}clip_l and {prefix}clip_g)")
    return _single(file, *infos.popitem(), schema, findings)


def _pair(
    file: TensorFile,
    prefix: str,
    infos: Mapping[str, TensorInfo],
    pair: tuple[str, str],
    schema: ParameterSchema,
    findings: Findings,
) -> tuple[dict[str, Planned], dict[str, Any]]:
    planned: dict[str, Planned] = {}
    problems: list[str] = []
    counts: set[int] = set()
    for key, component, width in zip(pair, _ENCODERS, schema.text_widths, strict=True):
        name = prefix + key
        info = infos.get(key)
        if info is None:
            problems.append(f"no vectors for {component} (key {name!r})")
            continue
        shape = _rows(info.shape)
        if shape[-1] != width or len(shape) != 2:
            problems.append(
                f"{name!r} is {list(info.shape)}; the served model needs vectors of width {width}"
            )
            continue
        problems += _too_many(name, shape)
        counts.add(shape[0])
        dtype = findings.stored_dtype(name, info.dtype)
        planned[component] = Planned(
            dtype, shape, partial(_values, file, name, shape, slice(None), findings)
        )
    if len(counts) > 1:
        problems.append(
            f"{prefix}{pair[0]} and {prefix}{pair[1]} hold different numbers of vectors"
        )
    if problems:
        raise IngestRejected(*problems)
    return planned, {"vectors": counts.pop(), "encoders": list(planned)}


def _single(
    file: TensorFile, name: str, info: TensorInfo, schema: ParameterSchema, findings: Findings
) -> tuple[dict[str, Planned], dict[str, Any]]:
    first, second = schema.text_widths
    shape = _rows(info.shape)
    count, width = shape[0], shape[-1]
    columns: dict[Component, slice] = {}
    if len(shape) == 2 and width == first + second:
        columns = {"text_encoder": slice(0, first), "text_encoder_2": slice(first, None)}
    elif len(shape) == 2 and width == second:
        columns = {"text_encoder_2": slice(None)}
    if not columns:
        raise IngestRejected(
            f"{name!r} is {list(info.shape)}; a single tensor for the served model has width "
            f"{first + second} (both text encoders) or {second} (the second); vectors of both "
            "are better uploaded as clip_l and clip_g"
        )
    if problems := _too_many(name, shape):
        raise IngestRejected(*problems)
    dtype = findings.stored_dtype(name, info.dtype)
    planned: dict[str, Planned] = {
        component: Planned(
            dtype,
            (count, len(range(width)[part])),
            partial(_values, file, name, shape, part, findings),
        )
        for component, part in columns.items()
    }
    return planned, {"vectors": count, "encoders": list(columns)}


def _rows(shape: Shape) -> Shape:
    return shape if len(shape) == 2 else (1, *shape)


def _too_many(name: str, shape: Shape) -> list[str]:
    if 0 < shape[0] <= MAX_VECTORS:
        return []
    return [f"{name!r} holds {shape[0]} vectors; 1 to {MAX_VECTORS} fit a prompt"]


def _values(
    file: TensorFile, name: str, shape: Shape, columns: slice, findings: Findings
) -> torch.Tensor:
    tensor = file.read_weights(name)
    findings.check_finite(name, tensor)
    return tensor.reshape(shape)[:, columns]
