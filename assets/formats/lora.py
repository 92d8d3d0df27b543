"""LoRA and its kin: from the spellings people have to one canonical form.

Canonical: for each published parameter ``P`` of component ``C`` that the file moves, the
pieces of its expression (see lora_kinds.py) as ``C/P.up``, ``C/P.down`` and so on, and one
float32 tensor ``scales`` with alpha / rank for each, in the order of the sorted names
``C/P``. The change at weight w is ``w · scale · Δ``, reshaped to the parameter's shape.
Inversions that the file brings along are ``bundle/WORD/C``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from assets.content import Component
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema, Shape
from assets.families.schema import stacking_order as row_order
from assets.formats import inversion
from assets.formats.findings import Findings
from assets.formats.header import Header
from assets.formats.identify import BUNDLE_PREFIX
from assets.formats.lora_kinds import Adapter, Piece, Unfit, adapter_of, split_key
from assets.formats.lora_names import BIAS, MOVED_COMPONENTS, TargetModule, module_spellings
from assets.formats.lora_strength import Strengths, read_strengths
from assets.formats.magnitude import LARGEST, change_bound, piece_bound
from assets.formats.tensors import Planned, TensorFile

SUPPORTED = "LoRA, LoCon, LoHa, LoKr, DoRA on any of them, and differences of weights and biases"
_UNSUPPORTED = re.compile(r"\.(?:(oft_\w+|boft_\w+)(?:\.[\w-]+)*|(on_input))$")
_KINDS = {"oft": "OFT", "bof": "BOFT", "on_": "IA3"}


@dataclass(frozen=True, slots=True)
class Matched:
    """A module of the file that the served model has: ``keys`` by role, and what they are."""

    keys: Mapping[str, str]
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which of a file's modules fit the served model. ``errors`` are fatal."""

    matched: Mapping[TargetModule, Matched]
    unmatched: tuple[str, ...]
    errors: tuple[str, ...]
    modules: int

    def report(self) -> dict[str, Any]:
        by_component = {c: sum(t.component == c for t in self.matched) for c in MOVED_COMPONENTS}
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
    """Match a LoRA's modules to the served model's parameters, by keys and shapes.

    Raises:
        IngestRejected: an adapter kind that is not supported, by name.
    """
    spellings = module_spellings(schema)
    found: dict[str, dict[str, str]] = {}
    strange: list[str] = []
    errors: list[str] = []
    for key in sorted(key for key in listing if not key.startswith(BUNDLE_PREFIX)):
        if unsupported := _UNSUPPORTED.search(key):
            kind = _KINDS[(unsupported[1] or unsupported[2])[:3]]
            raise IngestRejected(f"{kind} ({key!r}) is not supported; {SUPPORTED} are")
        split = split_key(key)
        if split is None:
            strange.append(key)
            continue
        module, role = split
        if role == "diff_b":  # moves another parameter than the module's weight
            module, role = module + BIAS, "diff"
        keys = found.setdefault(module, {})
        if role in keys:
            errors.append(f"{keys[role]!r} and {key!r} are two adapters of one module")
        keys[role] = key
    matched: dict[TargetModule, Matched] = {}
    unmatched = list(strange)
    for module, keys in found.items():
        targets = spellings.get(module)
        if targets is None:
            unmatched.append(module)
            continue
        try:
            target, adapter = _fitting({role: listing[key] for role, key in keys.items()}, targets)
        except Unfit as problem:
            errors.append(f"{module!r} {problem}")
            continue
        if target in matched:
            errors.append(f"{target.name} is moved twice, by {module!r} and by another spelling")
            continue
        matched[target] = Matched(keys, adapter)
    return Coverage(matched, tuple(unmatched), tuple(errors), len(found) + len(strange))


def _fitting(
    shapes: Mapping[str, Shape], targets: Sequence[TargetModule]
) -> tuple[TargetModule, Adapter]:
    """The adapter, and the one of these parameters that it is for."""
    adapter = adapter_of(shapes)
    have = (adapter.out_features, adapter.in_features)
    for target in targets:
        if have == (target.out_features, target.in_features):
            return target, adapter
    need = (targets[0].out_features, targets[0].in_features)
    raise Unfit(f"is for a parameter of {have} (out, in); the served model needs {need}")


def convert(
    file: TensorFile,
    schema: ParameterSchema,
    findings: Findings,
    adapter_config: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Planned], dict[str, Any]]:
    """The canonical tensors of a LoRA file, still to be read, and the coverage report.
    ``adapter_config`` is the content of PEFT's ``adapter_config.json``, if one came with it.

    Raises:
        IngestRejected: nothing fits, or something fits wrongly. Values that are not finite, and
        changes that are too large, are among the findings once they are read.
    """
    header = file.header
    coverage = cover(header.shapes, schema)
    if coverage.errors:
        raise IngestRejected(*coverage.errors)
    if not coverage.matched:
        names = ", ".join(map(repr, coverage.unmatched[:3]))
        raise IngestRejected(
            f"none of its {coverage.modules} modules is in the served model (for example {names}); "
            "a LoRA for SDXL in kohya, diffusers or PEFT names is accepted"
        )
    strengths = read_strengths(header.metadata, adapter_config)
    planned: dict[str, Planned] = {}
    scales: list[float] = []
    bounds: dict[str, dict[str, float]] = {}
    for target, match in sorted(coverage.matched.items(), key=lambda item: item[0].name):
        is_dora = {"magnitude", "dora_scale"} & set(match.keys)
        if strengths.says_dora(target.component) and not is_dora:
            raise IngestRejected("its configuration says DoRA, and the file has no magnitudes")
        scales.append(_scale(file, target, match, strengths))
        for name, piece in match.adapter.pieces.items():
            seen = bounds.setdefault(target.name, {})
            planned[f"{target.name}.{name}"] = _planned(
                file, name, piece, match.keys, seen, findings
            )
    report = {**coverage.report(), "alpha": _source_of_alpha(coverage, strengths)}
    if strengths.warnings:
        report["warnings"] = list(strengths.warnings)
    for word in _bundled_words(header):
        vectors, facts = inversion.convert(file, schema, findings, f"{BUNDLE_PREFIX}{word}.")
        planned |= {f"{BUNDLE}{word}/{name}": vector for name, vector in vectors.items()}
        report.setdefault("bundled", {})[word] = facts["vectors"]
    values = torch.tensor(scales, dtype=torch.float32)
    if not torch.isfinite(values).all():
        raise IngestRejected("an alpha is not a finite number")
    planned[SCALES] = Planned("F32", (len(scales),), lambda: values)
    by_target = dict(zip(sorted(bounds), scales, strict=True))
    findings.at_the_end(lambda: _largest(bounds, by_target, findings))
    return planned, report


def _largest(
    bounds: Mapping[str, Mapping[str, float]], scales: Mapping[str, float], findings: Findings
) -> dict[str, Any]:
    """Refuses changes beyond what the working weights can hold."""
    changes = {name: change_bound(seen, scales[name]) for name, seen in bounds.items()}
    for name, change in changes.items():
        if change > LARGEST:
            findings.refuse(
                f"it moves {name} by up to {change:.3g} at weight 1; float16 holds {LARGEST:g}"
            )
    finite = [change for change in changes.values() if math.isfinite(change)]
    return {"largest_change": float(f"{max(finite, default=0.0):.4g}")}


#: The tensors of a canonical LoRA that belong to no parameter.
SCALES, BUNDLE = "scales", "bundle/"


def stacks(
    tensors: Mapping[str, Shape], schema: ParameterSchema
) -> list[tuple[tuple[Component, Shape], tuple[str, ...], list[str]]]:
    """How the canonical tensors (names and shapes) are stacked: (component, shape of the
    parameters), the pieces that all members have, and the members ``C/P`` in the order of
    their rows. Members of one stack have pieces of the same shapes."""
    pieces_of: dict[str, list[str]] = {}
    for tensor in sorted(tensors):
        if tensor != SCALES and not tensor.startswith(BUNDLE):
            member, _, piece = tensor.rpartition(".")
            pieces_of.setdefault(member, []).append(piece)
    alike: dict[tuple[Any, ...], list[str]] = {}
    for component in MOVED_COMPONENTS:
        for parameter in row_order(schema.components[component]):
            member = f"{component}/{parameter}"
            if member in pieces_of:
                shape = schema.components[component][parameter]
                pieces = tuple((p, tensors[f"{member}.{p}"]) for p in pieces_of[member])
                alike.setdefault((component, shape, pieces), []).append(member)
    return [
        ((component, shape), tuple(piece for piece, _ in pieces), members)
        for (component, shape, pieces), members in sorted(alike.items())
    ]


def stacking_order(tensors: Mapping[str, Planned], schema: ParameterSchema) -> list[str]:
    """The order of a canonical LoRA's tensors in its file."""
    shapes = {name: planned.shape for name, planned in tensors.items()}
    order = [
        f"{member}.{piece}"
        for _, pieces, members in stacks(shapes, schema)
        for piece in pieces
        for member in members
    ]
    return order + sorted(set(tensors) - set(order))


def _bundled_words(header: Header) -> list[str]:
    """The trigger words of inversions that the file brings along (``bundle_emb.WORD.clip_l``)."""
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


def _scale(file: TensorFile, target: TargetModule, match: Matched, strengths: Strengths) -> float:
    rank = match.adapter.rank
    if rank is None:
        return 1.0
    if "alpha" in match.keys:
        return float(file.read(match.keys["alpha"]).float().reshape(())) / rank
    return strengths.scale(target.component, target.parameter.rpartition(".")[0], rank)


def _source_of_alpha(coverage: Coverage, strengths: Strengths) -> str:
    """For people: where the strength of the file's modules comes from."""
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
) -> Planned:
    def values() -> torch.Tensor:
        tensors = {role: file.read_weights(keys[role]) for role in piece.roles}
        for role, tensor in tensors.items():
            findings.check_finite(keys[role], tensor)
        made = piece.make(tensors)
        bounds[name] = piece_bound(name, made)
        return made

    dtypes = [
        findings.stored_dtype(keys[role], file.header.tensors[keys[role]].dtype)
        for role in piece.roles
    ]
    return Planned(dtypes[0] if len(dtypes) == 1 else "F32", piece.shape, values)
