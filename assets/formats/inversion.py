"""Convert textual inversions to ``text_encoder`` [n, w₁] and ``text_encoder_2`` [n, w₂].

A file has a tensor per encoder (``clip_l``, ``clip_g``: A1111, kohya, ComfyUI; ``text_encoders_0``,
``text_encoders_1``: diffusers) or one, named ``emb_params`` or the trigger word. Width w₁ + w₂ is
split; w₂ applies to the second encoder only; w₁ is rejected, as it may be SD 1.5's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from assets.content import Component
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema, Shape
from assets.formats.findings import Findings
from assets.formats.header import TensorInfo
from assets.formats.identify import PAIRS
from assets.formats.tensors import PlannedTensor, TensorFile
from assets.report import Report

MAX_VECTORS = 75
_ENCODERS: tuple[Component, Component] = ("text_encoder", "text_encoder_2")


def convert(
    file: TensorFile, schema: ParameterSchema, findings: Findings, prefix: str = ""
) -> tuple[dict[str, PlannedTensor], Report]:
    """Convert the keys under ``prefix`` to an inversion; return tensors and report.

    Reading adds non-finite values to ``findings``.

    Raises:
        IngestRejected: an encoder's vectors are missing, of the wrong width or too many.
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
        raise IngestRejected(f"the file has no vectors (keys {prefix}clip_l and {prefix}clip_g)")
    return _single(file, *infos.popitem(), schema, findings)


def _pair(
    file: TensorFile,
    prefix: str,
    infos: Mapping[str, TensorInfo],
    pair: tuple[str, str],
    schema: ParameterSchema,
    findings: Findings,
) -> tuple[dict[str, PlannedTensor], Report]:
    planned: dict[str, PlannedTensor] = {}
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
        planned[component] = PlannedTensor(
            dtype, shape, partial(_values, file, name, shape, slice(None), findings)
        )
    if len(counts) > 1:
        problems.append(
            f"{prefix}{pair[0]} and {prefix}{pair[1]} contain different numbers of vectors"
        )
    if problems:
        raise IngestRejected(*problems)
    return planned, {"vectors": counts.pop(), "encoders": list(planned)}


def _single(
    file: TensorFile, name: str, info: TensorInfo, schema: ParameterSchema, findings: Findings
) -> tuple[dict[str, PlannedTensor], Report]:
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
            f"{first + second} (both text encoders) or {second} (the second); for both encoders, "
            "upload clip_l and clip_g tensors"
        )
    if problems := _too_many(name, shape):
        raise IngestRejected(*problems)
    dtype = findings.stored_dtype(name, info.dtype)
    planned: dict[str, PlannedTensor] = {
        component: PlannedTensor(
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
    return [f"{name!r} contains {shape[0]} vectors; 1 to {MAX_VECTORS} fit a prompt"]


def _values(
    file: TensorFile, name: str, shape: Shape, columns: slice, findings: Findings
) -> torch.Tensor:
    tensor = file.read_weights(name)
    findings.check_finite(name, tensor)
    return tensor.reshape(shape)[:, columns]
