"""Writing of single-file checkpoints, with the parameter names that most published files use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from assets.content import MODEL_COMPONENTS, Component
from assets.families.schema import ParameterSchema, Shape
from assets.formats.names import single_file_name
from assets.formats.tensors import DTYPE_NAMES, PlannedTensor, write_tensors

Value = Callable[[Component, str, Shape], torch.Tensor]


def write_single_file(path: Path, schema: ParameterSchema, value: Value) -> Path:
    """Write every parameter of ``schema`` under its single-file name."""
    tensors: dict[str, torch.Tensor] = {}
    fused: dict[str, dict[int, torch.Tensor]] = {}
    for component in MODEL_COMPONENTS:
        for name, shape in schema.components[component].items():
            place = single_file_name(component, name)
            tensor = value(component, name, shape)
            if component == "vae" and ".attn_1." in place.name and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]  # a 1×1 convolution
            if place.third is not None:
                fused.setdefault(place.name, {})[place.third] = tensor
            else:
                tensors[place.name] = tensor.t() if place.transposed else tensor
    for name, thirds in fused.items():
        tensors[name] = torch.cat([thirds[i] for i in range(3)])
    planned = {
        name: PlannedTensor(DTYPE_NAMES[t.dtype], tuple(t.shape), partial(_identity, t))
        for name, t in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, planned, {})
    return path


def _identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
