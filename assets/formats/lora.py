"""Convert LoRA, LoHa, LoKr and DoRA files to one canonical form.

A changed parameter ``P`` of component ``C`` has the pieces (see lora_kinds.py) ``C/P.up``,
``C/P.down`` …. The float32 tensor ``scales`` has alpha / rank for each ``C/P``, sorted. The change
at weight w is ``w · scale · Δ``, reshaped. Bundled inversions are ``bundle/WORD/C``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from assets.content import Component
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema, Shape
from assets.families.schema import stacking_order as row_order
from assets.formats import inversion
from assets.formats.findings import Findings
from assets.formats.header import Header
from assets.formats.identify import BUNDLE_PREFIX
from assets.formats.lora_kinds import Adapter, AdapterMismatch, Piece, adapter_of, split_key
from assets.formats.lora_names import ADAPTED_COMPONENTS, BIAS, TargetModule, module_spellings
from assets.formats.lora_scales import LoraScales, read_scales
from assets.formats.magnitude import LARGEST, change_bound, piece_bound
from assets.formats.tensors import PlannedTensor, TensorFile
from assets.report import Report

SUPPORTED = "LoRA, LoCon, LoHa, LoKr, DoRA on any of them, and differences of weights and biases"
_UNSUPPORTED = re.compile(r"\.(?:(oft_\w+|boft_\w+)(?:\.[\w-]+)*|(on_input))$")
_KINDS = {"oft": "OFT", "bof": "BOFT", "on_": "IA3"}


@dataclass(frozen=True, slots=True)
class MatchedModule:
    """A module that the served model has: its ``keys`` by role, and its adapter."""

    keys: Mapping[str, str]
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Coverage:
    """A file's modules in the served model. ``errors`` are fatal."""

    matched: Mapping[TargetModule, MatchedModule]
    unmatched: tuple[str, ...]
    errors: tuple[str, ...]
    modules: int

    def report(self) -> Report:
        by_component = {c: sum(t.component == c for t in self.matched) for c in ADAPTED_COMPONENTS}
        adapters = [match.adapter for match in self.matched.values()]
        return {
            "modules": self.modules,
            "matched": len(self.matched),
            "matched_by_component": by_component,
            "unmatched": list(self.unmatched[:50]),
            "kinds": sorted({adapter.kind for adapter in adapters}),
            "ranks": sorted({a.rank for a in adapters if a.rank is not None}),
        }


def cover(listing: Mapping[str, Shape], schema: ParameterSchema) -> Coverage:
    """Match a LoRA's modules to the served model by keys and shapes.

    Raises:
        IngestRejected: the adapter kind is not supported.
    """
    spellings = module_spellings(schema)
    modules: dict[str, dict[str, str]] = {}
    unknown_keys: list[str] = []
    errors: list[str] = []
    for key in sorted(key for key in listing if not key.startswith(BUNDLE_PREFIX)):
        if unsupported := _UNSUPPORTED.search(key):
            kind = _KINDS[(unsupported[1] or unsupported[2])[:3]]
            raise IngestRejected(f"{kind} ({key!r}) is not supported; {SUPPORTED} are")
        split = split_key(key)
        if split is None:
            unknown_keys.append(key)
            continue
        module, role = split
        if role == "diff_b":  # changes the bias, not the weight
            module, role = module + BIAS, "diff"
        keys = modules.setdefault(module, {})
        if role in keys:
            errors.append(f"{keys[role]!r} and {key!r} are two adapters for one module")
        keys[role] = key
    matched: dict[TargetModule, MatchedModule] = {}
    unmatched = list(unknown_keys)
    for module, keys in modules.items():
        targets = spellings.get(module)
        if targets is None:
            unmatched.append(module)
            continue
        try:
            target, adapter = _match_target(
                {role: listing[key] for role, key in keys.items()}, targets
            )
        except AdapterMismatch as problem:
            errors.append(f"{module!r} {problem}")
            continue
        if target in matched:
            errors.append(f"{target.name} is changed twice: by {module!r} and under another name")
            continue
        matched[target] = MatchedModule(keys, adapter)
    return Coverage(matched, tuple(unmatched), tuple(errors), len(modules) + len(unknown_keys))


def _match_target(
    shapes: Mapping[str, Shape], targets: Sequence[TargetModule]
) -> tuple[TargetModule, Adapter]:
    adapter = adapter_of(shapes)
    actual = (adapter.out_features, adapter.in_features)
    for target in targets:
        if actual == (target.out_features, target.in_features):
            return target, adapter
    expected = (targets[0].out_features, targets[0].in_features)
    raise AdapterMismatch(
        f"is for a parameter of {actual} (out, in); the served model needs {expected}"
    )


def convert(
    file: TensorFile,
    schema: ParameterSchema,
    findings: Findings,
    adapter_config: Mapping[str, object] | None = None,
) -> tuple[dict[str, PlannedTensor], Report]:
    """Return a LoRA's canonical tensors, values not yet read, and the report.

    Reading adds non-finite values and too large changes to ``findings``.

    Raises:
        IngestRejected: no module matches, a shape is wrong, or the configuration is unsupported.
    """
    header = file.header
    coverage = cover(header.shapes, schema)
    if coverage.errors:
        raise IngestRejected(*coverage.errors)
    if not coverage.matched:
        names = ", ".join(map(repr, coverage.unmatched[:3]))
        raise IngestRejected(
            f"none of its {coverage.modules} modules is in the served model (for example {names}); "
            "accepted: a LoRA for SDXL with kohya, diffusers or PEFT names"
        )
    strengths = read_scales(header.metadata, adapter_config)
    planned: dict[str, PlannedTensor] = {}
    scales: list[float] = []
    bounds: dict[str, dict[str, float]] = {}
    for target, match in sorted(coverage.matched.items(), key=lambda item: item[0].name):
        is_dora = {"magnitude", "dora_scale"} & set(match.keys)
        if strengths.uses_dora(target.component) and not is_dora:
            raise IngestRejected("its configuration enables DoRA, but the file has no magnitudes")
        scales.append(_scale(file, target, match, strengths))
        for name, piece in match.adapter.pieces.items():
            piece_bounds = bounds.setdefault(target.name, {})
            planned[f"{target.name}.{name}"] = _planned(
                file, name, piece, match.keys, piece_bounds, findings
            )
    report = coverage.report()
    report["alpha"] = _alpha_source(coverage, strengths)
    if strengths.warnings:
        report["warnings"] = list(strengths.warnings)
    for word in _bundled_words(header):
        vectors, facts = inversion.convert(file, schema, findings, f"{BUNDLE_PREFIX}{word}.")
        planned |= {f"{BUNDLE}{word}/{name}": vector for name, vector in vectors.items()}
        report.setdefault("bundled", {})[word] = facts["vectors"]
    values = torch.tensor(scales, dtype=torch.float32)
    if not torch.isfinite(values).all():
        raise IngestRejected("an alpha is not a finite number")
    planned[SCALES] = PlannedTensor("F32", (len(scales),), lambda: values)
    by_target = dict(zip(sorted(bounds), scales, strict=True))
    findings.at_the_end(lambda: _check_changes(bounds, by_target, findings))
    return planned, report


def _check_changes(
    bounds: Mapping[str, Mapping[str, float]], scales: Mapping[str, float], findings: Findings
) -> Report:
    """Refuse changes that overflow float16 working weights."""
    changes = {name: change_bound(pieces, scales[name]) for name, pieces in bounds.items()}
    for name, change in changes.items():
        if change > LARGEST:
            findings.refuse(
                f"it changes {name} by up to {change:.3g} at weight 1; "
                f"the float16 maximum is {LARGEST:g}"
            )
    finite = [change for change in changes.values() if math.isfinite(change)]
    return {"largest_change": float(f"{max(finite, default=0.0):.4g}")}


#: Canonical tensors that belong to no parameter.
SCALES, BUNDLE = "scales", "bundle/"


def stacks(
    tensors: Mapping[str, Shape], schema: ParameterSchema
) -> list[tuple[tuple[Component, Shape], tuple[str, ...], list[str]]]:
    """Group canonical tensors into stacks. The members of a stack have pieces of equal shapes.

    Per stack: (component, parameter shape), the piece names, the members ``C/P`` in row order.
    """
    pieces_of: dict[str, list[str]] = {}
    for tensor in sorted(tensors):
        if tensor != SCALES and not tensor.startswith(BUNDLE):
            member, _, piece = tensor.rpartition(".")
            pieces_of.setdefault(member, []).append(piece)
    groups: dict[tuple[Component, Shape, tuple[tuple[str, Shape], ...]], list[str]] = {}
    for component in ADAPTED_COMPONENTS:
        for parameter in row_order(schema.components[component]):
            member = f"{component}/{parameter}"
            if member in pieces_of:
                shape = schema.components[component][parameter]
                pieces = tuple((p, tensors[f"{member}.{p}"]) for p in pieces_of[member])
                groups.setdefault((component, shape, pieces), []).append(member)
    return [
        ((component, shape), tuple(piece for piece, _ in pieces), members)
        for (component, shape, pieces), members in sorted(groups.items())
    ]


def stacking_order(tensors: Mapping[str, PlannedTensor], schema: ParameterSchema) -> list[str]:
    """Return a canonical LoRA's tensors stack by stack."""
    shapes = {name: planned.shape for name, planned in tensors.items()}
    order = [
        f"{member}.{piece}"
        for _, pieces, members in stacks(shapes, schema)
        for piece in pieces
        for member in members
    ]
    return order + sorted(set(tensors) - set(order))


def _bundled_words(header: Header) -> list[str]:
    words: dict[str, None] = {}
    for key in header.tensors:
        if key.startswith(BUNDLE_PREFIX):
            word, _, vectors = key.removeprefix(BUNDLE_PREFIX).rpartition(".")
            if not word or vectors not in ("clip_l", "clip_g"):
                raise IngestRejected(
                    f"{key!r}: a bundled inversion for SDXL has clip_l and clip_g vectors"
                )
            words[word] = None
    return list(words)


def _scale(
    file: TensorFile, target: TargetModule, match: MatchedModule, strengths: LoraScales
) -> float:
    rank = match.adapter.rank
    if rank is None:
        return 1.0
    if "alpha" in match.keys:
        return float(file.read(match.keys["alpha"]).float().reshape(())) / rank
    return strengths.scale(target.component, target.parameter.rpartition(".")[0], rank)


def _alpha_source(coverage: Coverage, strengths: LoraScales) -> str:
    sources = {
        "tensors" if "alpha" in match.keys
        else "configuration" if strengths.covers(target.component) else "rank"
        for target, match in coverage.matched.items() if match.adapter.rank is not None
    }  # fmt: skip
    return ", ".join(sorted(sources))


def _planned(
    file: TensorFile,
    name: str,
    piece: Piece,
    keys: Mapping[str, str],
    bounds: dict[str, float],
    findings: Findings,
) -> PlannedTensor:
    def values() -> torch.Tensor:
        tensors = {role: file.read_weights(keys[role]) for role in piece.roles}
        for role, source in tensors.items():
            findings.check_finite(keys[role], source)
        tensor = piece.make(tensors)
        bounds[name] = piece_bound(name, tensor)
        return tensor

    dtypes = [
        findings.stored_dtype(keys[role], file.header.tensors[keys[role]].dtype)
        for role in piece.roles
    ]
    return PlannedTensor(dtypes[0] if len(dtypes) == 1 else "F32", piece.shape, values)
