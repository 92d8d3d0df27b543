"""Checkpoints and VAEs: from a single file to one canonical file per component."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from assets.content import MODEL_COMPONENTS, Component
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema, Shape
from assets.formats.findings import Findings
from assets.formats.names import SingleFileName, short_name, single_file_name
from assets.formats.tensors import CANONICAL_FLOATS, TORCH_DTYPES, Planned, TensorFile

#: In many single files, and no part of the model that is drawn with.
_SKIPPED = (
    "model_ema.", "position_ids", "logit_scale", "alphas_cumprod", "denoiser.", "betas",
    "scaled_fp8", ".scale_input", "v_pred", "ztsnr",
)  # fmt: skip
#: Behind a module's name: the number by which its weight in eight bits is to be multiplied.
_SCALE = "scale_weight"

Tensors = dict[str, Planned]


def convert_checkpoint(
    file: TensorFile, schema: ParameterSchema, findings: Findings
) -> tuple[dict[Component, Tensors], dict[str, Any]]:
    """Canonical tensors for each component that the file holds whole.

    A UNet is required; an absent text encoder or VAE is taken from the base model
    and said so in the report (``from_base``).

    Raises:
        IngestRejected: there is no UNet. What is incomplete or does not fit is among the
        findings at once, and values that are not finite once they are read.
    """
    parts: dict[Component, Tensors] = {}
    used: set[str] = set()
    from_base: list[Component] = []
    for component in MODEL_COMPONENTS:
        wanted = schema.components[component]
        names = _names_in(file, component, wanted)
        if names is None:
            from_base.append(component)
            continue
        parts[component] = _component(file, component, wanted, names, findings)
        used.update(_read_for(file, names))
    if "unet" not in parts:
        raise IngestRejected("no UNet in the file; a checkpoint must bring at least that")
    return parts, _report(file, used, from_base)


def _names_in(
    file: TensorFile, component: Component, wanted: Mapping[str, Shape]
) -> Mapping[str, SingleFileName] | None:
    """Where the file has the component's parameters, in whichever of the known layouts: a
    single file; a diffusers folder in one file, each name behind its component's; a UNet alone
    in diffusers names. None when it has no part of it."""
    single = {name: single_file_name(component, name) for name in wanted}
    layouts = [single]
    for prefix in (f"{component}/", f"{component}."):
        layouts.append({name: SingleFileName(prefix + name) for name in wanted})
        short = {name: prefix + short_name(name) for name in wanted}
        layouts.append({name: SingleFileName(place) for name, place in short.items()})
    if component == "unet":
        layouts.append({name: SingleFileName(name) for name in wanted})
    found = [sum(place.name in file for place in layout.values()) for layout in layouts]
    best = max(range(len(layouts)), key=lambda index: found[index])
    return layouts[best] if found[best] else None


def convert_vae(
    file: TensorFile, schema: ParameterSchema, findings: Findings
) -> tuple[Tensors, dict[str, Any]]:
    """Canonical tensors of a VAE in diffusers or LDM names, with or without a prefix."""
    wanted = schema.components["vae"]
    if "decoder.mid_block.resnets.0.conv1.weight" in file:
        names = {name: SingleFileName(name) for name in wanted}
    else:
        prefixed = any(name.startswith("first_stage_model.") for name in file.header.tensors)
        names = {name: single_file_name("vae", name, prefixed=prefixed) for name in wanted}
    tensors = _component(file, "vae", wanted, names, findings)
    return tensors, _report(file, _read_for(file, names), [])


def _read_for(file: TensorFile, names: Mapping[str, SingleFileName]) -> set[str]:
    """The tensors that a component is made from."""
    used = {source.name for source in names.values()}
    scales = {name for source in used if (name := _scale_of(source)) in file}
    return used | scales


def _scale_of(name: str) -> str:
    return name.removesuffix("weight") + _SCALE if name.endswith(".weight") else ""


def _report(file: TensorFile, used: set[str], from_base: list[Component]) -> dict[str, Any]:
    rest = set(file.header.tensors) - used
    skipped = {name for name in rest if any(piece in name for piece in _SKIPPED)}
    unmatched = sorted(rest - skipped)
    return {
        "matched": len(used),
        "tensors_for_the_model": len(used) + len(unmatched),
        "skipped": sorted(skipped)[:50],
        "unmatched": unmatched[:50],
        "from_base": list(from_base),
    }


def _is_one_number(file: TensorFile, name: str) -> bool:
    """Whether the tensor ``name`` is a scalar; True if the file has no such tensor."""
    info = file.header.tensors.get(name)
    return info is None or (info.dtype in CANONICAL_FLOATS and math.prod(info.shape) == 1)


def _component(
    file: TensorFile,
    component: Component,
    wanted: Mapping[str, Shape],
    names: Mapping[str, SingleFileName],
    findings: Findings,
) -> Tensors:
    planned: Tensors = {}
    problems: list[str] = []
    for name, shape in wanted.items():
        source = names[name]
        info = file.header.tensors.get(source.name)
        if info is None:
            problems.append(f"{component}: {source.name!r} is missing")
        elif not _fits(info.shape, shape, source):
            problems.append(
                f"{source.name!r} is {list(info.shape)}; the served model has {list(shape)}"
            )
        elif not _is_one_number(file, _scale_of(source.name)):
            problems.append(f"{_scale_of(source.name)!r} is no single number")
        else:
            dtype = findings.stored_dtype(source.name, info.dtype)
            planned[name] = Planned(dtype, shape, _reader(file, source, shape, dtype, findings))
    if problems:
        more = len(problems) - 5
        tail = (f"and {more} more like these in {component}",) if more > 0 else ()
        findings.refuse(*problems[:5], *tail)
    return planned


def _fits(found: Shape, wanted: Shape, source: SingleFileName) -> bool:
    if source.third is not None:
        return found == (wanted[0] * 3, *wanted[1:])
    if source.transposed:
        return found == tuple(reversed(wanted))
    return found == wanted or (len(wanted) == 2 and found == (*wanted, 1, 1))


def _reader(
    file: TensorFile, source: SingleFileName, shape: Shape, dtype: str, findings: Findings
) -> Callable[[], torch.Tensor]:
    scale = _scale_of(source.name)

    def values() -> torch.Tensor:
        tensor = file.read_weights(source.name)
        if scale in file:
            tensor = (tensor.float() * file.read(scale).float().reshape(())).to(TORCH_DTYPES[dtype])
        if source.third is not None:
            tensor = tensor.chunk(3)[source.third]
        if source.transposed:
            tensor = tensor.t()
        findings.check_finite(source.name, tensor)
        return tensor.reshape(shape)

    return values
