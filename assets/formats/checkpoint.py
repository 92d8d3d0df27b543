"""Convert checkpoints and VAEs to one canonical file per component."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from assets.content import MODEL_COMPONENTS, Component
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema, Shape
from assets.formats.findings import Findings
from assets.formats.names import SingleFileName, short_name, single_file_name
from assets.formats.tensors import CANONICAL_FLOATS, TORCH_DTYPES, PlannedTensor, TensorFile
from assets.report import Report

#: Unused tensors, by parts of their names.
_SKIPPED = (
    "model_ema.", "position_ids", "logit_scale", "alphas_cumprod", "denoiser.", "betas",
    "scaled_fp8", ".scale_input", "v_pred", "ztsnr",
)  # fmt: skip
#: The scalar that multiplies an 8-bit weight.
_SCALE_LEAF = "scale_weight"

Tensors = dict[str, PlannedTensor]


def convert_checkpoint(
    file: TensorFile, schema: ParameterSchema, findings: Findings
) -> tuple[dict[Component, Tensors], Report]:
    """Return each component's canonical tensors, and the report.

    The base model supplies a missing text encoder or VAE (``from_base`` in the report). Missing
    tensors and wrong shapes are added to ``findings`` at once, non-finite values when read.

    Raises:
        IngestRejected: the file has no UNet.
    """
    parts: dict[Component, Tensors] = {}
    used: set[str] = set()
    from_base: list[Component] = []
    for component in MODEL_COMPONENTS:
        expected = schema.components[component]
        names = _match_layout(file, component, expected)
        if names is None:
            from_base.append(component)
            continue
        parts[component] = _plan_component(file, component, expected, names, findings)
        used.update(_source_names(file, names))
    if "unet" not in parts:
        raise IngestRejected("the file has no UNet; a checkpoint must contain at least a UNet")
    return parts, _report(file, used, from_base)


def _match_layout(
    file: TensorFile, component: Component, expected: Mapping[str, Shape]
) -> Mapping[str, SingleFileName] | None:
    """Map parameters to the file's names by the layout that matches most; None if none does.

    Layouts: LDM names; a packed diffusers folder (names prefixed by the component); a bare UNet.
    """
    single = {name: single_file_name(component, name) for name in expected}
    layouts = [single]
    for prefix in (f"{component}/", f"{component}."):
        layouts.append({name: SingleFileName(prefix + name) for name in expected})
        short = {name: prefix + short_name(name) for name in expected}
        layouts.append({name: SingleFileName(source) for name, source in short.items()})
    if component == "unet":
        layouts.append({name: SingleFileName(name) for name in expected})
    matches = [sum(source.name in file for source in layout.values()) for layout in layouts]
    best = max(range(len(layouts)), key=lambda index: matches[index])
    return layouts[best] if matches[best] else None


def convert_vae(
    file: TensorFile, schema: ParameterSchema, findings: Findings
) -> tuple[Tensors, Report]:
    """Convert a VAE with diffusers or LDM names, prefixed or not."""
    expected = schema.components["vae"]
    if "decoder.mid_block.resnets.0.conv1.weight" in file:
        names = {name: SingleFileName(name) for name in expected}
    else:
        prefixed = any(name.startswith("first_stage_model.") for name in file.header.tensors)
        names = {name: single_file_name("vae", name, prefixed=prefixed) for name in expected}
    tensors = _plan_component(file, "vae", expected, names, findings)
    return tensors, _report(file, _source_names(file, names), [])


def _source_names(file: TensorFile, names: Mapping[str, SingleFileName]) -> set[str]:
    used = {source.name for source in names.values()}
    scales = {name for source in used if (name := _scale_name(source)) in file}
    return used | scales


def _scale_name(name: str) -> str:
    return name.removesuffix("weight") + _SCALE_LEAF if name.endswith(".weight") else ""


def _report(file: TensorFile, used: set[str], from_base: list[Component]) -> Report:
    unused = set(file.header.tensors) - used
    skipped = {name for name in unused if any(piece in name for piece in _SKIPPED)}
    unmatched = sorted(unused - skipped)
    return {
        "matched": len(used),
        "tensors_for_the_model": len(used) + len(unmatched),
        "skipped": sorted(skipped)[:50],
        "unmatched": unmatched[:50],
        "from_base": list(from_base),
    }


def _is_scalar(file: TensorFile, name: str) -> bool:
    """Whether the tensor is a scalar or absent."""
    info = file.header.tensors.get(name)
    return info is None or (info.dtype in CANONICAL_FLOATS and math.prod(info.shape) == 1)


def _plan_component(
    file: TensorFile,
    component: Component,
    expected: Mapping[str, Shape],
    names: Mapping[str, SingleFileName],
    findings: Findings,
) -> Tensors:
    planned: Tensors = {}
    problems: list[str] = []
    for name, shape in expected.items():
        source = names[name]
        info = file.header.tensors.get(source.name)
        if info is None:
            problems.append(f"{component}: {source.name!r} is missing")
        elif not _fits(info.shape, shape, source):
            problems.append(
                f"{source.name!r} is {list(info.shape)}; the served model has {list(shape)}"
            )
        elif not _is_scalar(file, _scale_name(source.name)):
            problems.append(f"{_scale_name(source.name)!r} is not a single floating-point number")
        else:
            dtype = findings.stored_dtype(source.name, info.dtype)
            planned[name] = PlannedTensor(
                dtype, shape, _value_reader(file, source, shape, dtype, findings)
            )
    if problems:
        more = len(problems) - 5
        tail = (f"and {more} more like these in {component}",) if more > 0 else ()
        findings.refuse(*problems[:5], *tail)
    return planned


def _fits(shape: Shape, expected: Shape, source: SingleFileName) -> bool:
    if source.third is not None:
        return shape == (expected[0] * 3, *expected[1:])
    if source.transposed:
        return shape == tuple(reversed(expected))
    return shape == expected or (len(expected) == 2 and shape == (*expected, 1, 1))


def _value_reader(
    file: TensorFile, source: SingleFileName, shape: Shape, dtype: str, findings: Findings
) -> Callable[[], torch.Tensor]:
    scale = _scale_name(source.name)

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
