"""LoRA: from the spellings people have to one canonical form.

Canonical: for each published parameter ``P`` of component ``C`` that the LoRA
moves, ``C/P.up`` of shape [out, r] and ``C/P.down`` of shape [r, in] (a
convolution's ``in`` is in·kh·kw), and one float32 tensor ``scales`` with
alpha / r for each, in the order of the sorted names ``C/P``. The change at
weight w is ``w · scale · up @ down``, reshaped to the parameter's shape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from assets.content import Component
from assets.errors import IngestRejected
from assets.formats.header import Header
from assets.formats.names import unet_ldm_name
from assets.formats.tensors import Planned, TensorFile
from assets.skeleton import Shape, Skeleton

Role = Literal["down", "up", "alpha"]

MAX_RANK = 1024

_SUFFIXES: tuple[tuple[str, Role], ...] = (
    (".lora_down.weight", "down"),
    (".lora_up.weight", "up"),
    (".lora_A.weight", "down"),
    (".lora_B.weight", "up"),
    (".lora_A.default.weight", "down"),
    (".lora_B.default.weight", "up"),
    (".lora.down.weight", "down"),
    (".lora.up.weight", "up"),
    ("_lora.down.weight", "down"),
    ("_lora.up.weight", "up"),
    (".lora_linear_layer.down.weight", "down"),
    (".lora_linear_layer.up.weight", "up"),
    (".alpha", "alpha"),
)
_UNSUPPORTED = (
    ("dora_scale", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("lora_mid", "LoCon with a mid factor"),
    ("oft_", "OFT"),
    ("boft", "BOFT"),
    ("on_input", "IA3"),
    (".diff", "full differences"),
    ("bundle_emb", "bundled inversions"),
)
_TEXT_ENCODERS: tuple[tuple[Component, str], ...] = (
    ("text_encoder", "lora_te1_"),
    ("text_encoder_2", "lora_te2_"),
)
_COMPONENTS: tuple[Component, ...] = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter of the served model that an adapter can move."""

    component: Component
    parameter: str
    shape: Shape

    @property
    def name(self) -> str:
        return f"{self.component}/{self.parameter}"

    @property
    def out_features(self) -> int:
        return self.shape[0]

    @property
    def in_features(self) -> int:
        size = 1
        for extent in self.shape[1:]:
            size *= extent
        return size


def module_spellings(skeleton: Skeleton) -> dict[str, Target]:
    """Every name under which some trainer knows a module of the served model."""
    spellings: dict[str, Target] = {}
    for component in _COMPONENTS:
        for parameter, shape in skeleton.components[component].items():
            if not parameter.endswith(".weight") or len(shape) not in (2, 4):
                continue
            target = Target(component, parameter, shape)
            module = parameter.removesuffix(".weight")
            for spelling in _spellings(component, module):
                spellings[spelling] = target
    return spellings


def _spellings(component: Component, module: str) -> Iterator[str]:
    if component == "unet":
        ldm = unet_ldm_name(module + ".weight").removesuffix(".weight")
        yield "lora_unet_" + module.replace(".", "_")
        yield "lora_unet_" + ldm.replace(".", "_")
        yield f"unet.{module}"
        yield f"base_model.model.{module}"
        yield f"base_model.model.unet.{module}"
        processor = re.sub(r"\.(to_[qkv]|to_out)(\.0)?$", r".processor.\1", module)
        if processor != module:
            yield f"unet.{processor}"
        return
    for name, prefix in _TEXT_ENCODERS:
        if name == component:
            yield prefix + module.replace(".", "_")
    yield f"{component}.{module}"
    if ".self_attn." in module:
        yield f"{component}.{module}".replace("_proj", "_proj.lora_linear_layer")


@dataclass(slots=True)
class _Factors:
    down: str | None = None
    up: str | None = None
    alpha: str | None = None


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which of a file's modules fit the served model. ``shape_errors`` are fatal."""

    matched: Mapping[Target, Any]
    unmatched: tuple[str, ...]
    shape_errors: tuple[str, ...]
    modules: int
    ranks: tuple[int, ...] = field(default=())

    def report(self) -> dict[str, Any]:
        by_component = {c: sum(t.component == c for t in self.matched) for c in _COMPONENTS}
        return {
            "modules": self.modules,
            "matched": len(self.matched),
            "matched_by_component": by_component,
            "unmatched": list(self.unmatched[:50]),
            "ranks": list(self.ranks),
        }


def cover(listing: Mapping[str, Shape], skeleton: Skeleton) -> Coverage:
    """Match a LoRA's modules to the served model's parameters, by keys and shapes.

    Raises:
        IngestRejected: an adapter kind that is not supported, by name.
    """
    for piece, kind in _UNSUPPORTED:
        if key := next((key for key in listing if piece in key), None):
            raise IngestRejected(f"{kind} ({key!r}) is not supported; plain LoRA is")
    spellings = module_spellings(skeleton)
    found: dict[str, _Factors] = {}
    strange: list[str] = []
    for key in sorted(listing):
        for suffix, role in _SUFFIXES:
            if key.endswith(suffix):
                setattr(found.setdefault(key.removesuffix(suffix), _Factors()), role, key)
                break
        else:
            strange.append(key)
    matched: dict[Target, _Factors] = {}
    unmatched, errors, ranks = list(strange), [], set()
    for module, factors in found.items():
        target = spellings.get(module)
        if target is None:
            unmatched.append(module)
            continue
        if problem := _misfit(module, factors, target, listing):
            errors.append(problem)
            continue
        if target in matched:
            errors.append(f"{target.name} is moved twice, by {module!r} and by another spelling")
            continue
        assert factors.down is not None
        ranks.add(listing[factors.down][0])
        matched[target] = factors
    return Coverage(
        matched, tuple(unmatched), tuple(errors), len(found) + len(strange), tuple(sorted(ranks))
    )


def _misfit(
    module: str, factors: _Factors, target: Target, listing: Mapping[str, Shape]
) -> str | None:
    if factors.down is None or factors.up is None:
        missing = "down" if factors.down is None else "up"
        return f"{module!r} has no {missing} factor"
    down, up = listing[factors.down], listing[factors.up]
    if not (0 < down[0] <= MAX_RANK):
        return f"{module!r} has rank {down[0]}; at most {MAX_RANK} is accepted"
    want_down = (down[0], *target.shape[1:])
    if _flat(down) != _flat(want_down):
        return f"{module!r}: down is {list(down)}, the served model needs {list(want_down)}"
    if _flat(up) != (target.out_features, down[0]):
        need = [target.out_features, down[0]]
        return f"{module!r}: up is {list(up)}, the served model needs {need}"
    if factors.alpha is not None and _elements(listing[factors.alpha]) != 1:
        return f"{module!r}: alpha must be a single number"
    return None


def _elements(shape: Shape) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _flat(shape: Shape) -> Shape:
    return (shape[0], _elements(shape[1:]))


def convert(file: TensorFile, skeleton: Skeleton) -> tuple[dict[str, Planned], dict[str, Any]]:
    """The canonical tensors of a LoRA file, still to be read, and the coverage report.

    Raises:
        IngestRejected: nothing fits, or something fits wrongly, or a value is not finite.
    """
    header = file.header
    coverage = cover(header.shapes, skeleton)
    if coverage.shape_errors:
        more = len(coverage.shape_errors) - 5
        tail = (f"and {more} more like these",) if more > 0 else ()
        raise IngestRejected(*coverage.shape_errors[:5], *tail)
    if not coverage.matched:
        names = ", ".join(map(repr, coverage.unmatched[:3]))
        raise IngestRejected(
            f"none of its {coverage.modules} modules is in the served model (for example {names}); "
            "a LoRA for SDXL in kohya, diffusers or PEFT names is accepted"
        )
    alphas = _metadata_alphas(header)
    planned: dict[str, Planned] = {}
    scales: list[float] = []
    for target, factors in sorted(coverage.matched.items(), key=lambda item: item[0].name):
        rank = header.tensors[factors.down].shape[0]
        if factors.alpha is not None:
            alpha = float(file.read(factors.alpha).float().reshape(()))
        else:
            alpha = alphas.get(factors.down, float(rank))
        scales.append(alpha / rank)
        planned[f"{target.name}.down"] = _factor(file, factors.down, (rank, target.in_features))
        planned[f"{target.name}.up"] = _factor(file, factors.up, (target.out_features, rank))
    values = torch.tensor(scales, dtype=torch.float32)
    if not torch.isfinite(values).all():
        raise IngestRejected("an alpha is not a finite number")
    planned["scales"] = Planned("F32", (len(scales),), lambda: values)
    return planned, coverage.report()


def _factor(file: TensorFile, name: str, shape: Shape) -> Planned:
    def values() -> torch.Tensor:
        tensor = file.read(name)
        if not torch.isfinite(tensor).all():
            raise IngestRejected(f"{name!r} holds values that are not finite (NaN or infinite)")
        return tensor.reshape(shape)

    return Planned(file.header.tensors[name].dtype, shape, values)


def _metadata_alphas(header: Header) -> dict[str, float]:
    """Alphas that diffusers keeps beside the tensors (``lora_adapter_metadata``), by down key."""
    raw = header.metadata.get("lora_adapter_metadata")
    if raw is None:
        return {}
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        raise IngestRejected("its lora_adapter_metadata is not JSON") from None
    if not isinstance(config, dict):
        raise IngestRejected("its lora_adapter_metadata is not an object")
    alphas: dict[str, float] = {}
    for component in _COMPONENTS:
        prefix = f"{component}."
        default = _number(config.get(f"{prefix}lora_alpha"))
        pattern = config.get(f"{prefix}alpha_pattern") or {}
        if not isinstance(pattern, dict):
            raise IngestRejected("alpha_pattern in its lora_adapter_metadata is not an object")
        for key in header.tensors:
            if not key.startswith(prefix) or ".lora_A." not in key:
                continue
            module = key.removeprefix(prefix).split(".lora_A.")[0]
            # PEFT reads these endings as regular expressions; a stranger's are not run here.
            own = (_number(a) for end, a in pattern.items() if f".{module}".endswith(f".{end}"))
            alpha = next(own, default)
            if alpha is not None:
                alphas[key] = alpha
    return alphas


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise IngestRejected(f"an alpha in its lora_adapter_metadata is no number: {value!r}")
    return float(value)
