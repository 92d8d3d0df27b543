"""Ingest: an uploaded file becomes canonical files, once, or is refused with every reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.asset import AssetKind
from assets.content import MODEL_COMPONENTS, Blob, Component, content_key
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema, stacking_order
from assets.formats import checkpoint, inversion, lora
from assets.formats.findings import Findings
from assets.formats.header import Header, read_header
from assets.formats.identify import identify
from assets.formats.prediction_source import find_prediction
from assets.formats.relatives import distilled
from assets.formats.tensors import CANONICAL_FLOATS, Planned, TensorFile, write_tensors
from assets.ingest.rules import ACCEPTED, SERVED_FAMILY, check_family, mismatch
from assets.prediction import PREDICTIONS, Prediction, Predicts

_OWNER = "owner"
_MAX_TRAINING_CHARS, _MAX_VALUE_CHARS = 32_768, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnersWord:
    """What the owner says of a file beside its kind. ``adapter_config`` is the content of PEFT's
    ``adapter_config.json``, which lies beside an adapter's file."""

    prediction: Prediction | None = None
    adapter_config: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> OwnersWord:
        """From an asset's ``data``, or another process's JSON."""
        return cls(
            prediction=data.get("prediction_type"), adapter_config=data.get("adapter_config")
        )

    def to_json(self) -> dict[str, Any]:
        return {"prediction_type": self.prediction, "adapter_config": self.adapter_config}


@dataclass(frozen=True, slots=True)
class Ingested:
    """Canonical files in a scratch folder, ready to be stored under their keys."""

    files: Mapping[Component, tuple[Blob, Path]]
    report: Mapping[str, Any]


def ingest_file(
    path: Path,
    declared: AssetKind,
    schema: ParameterSchema,
    salt: bytes | None,
    scratch: Path,
    word: OwnersWord = OwnersWord(),
) -> Ingested:
    """Write the canonical form of ``path`` into ``scratch``; one tensor in memory at a time.

    Raises:
        IngestRejected: with every reason that was found.
    """
    header = read_header(path)
    identity = identify(header.shapes)
    check_family(identity)
    if identity.kind == "checkpoint" and (thin := distilled(header.shapes, schema)):
        raise IngestRejected(f"this is {thin.name} ({thin.evidence}); {ACCEPTED}")
    assert identity.kind is not None
    findings = Findings()
    if identity.kind != declared:
        findings.refuse(mismatch(identity, declared))
    with TensorFile(path) as file:
        try:
            components, report = _convert(file, identity.kind, schema, findings, word)
        except IngestRejected as rejected:
            findings.refuse(*rejected.reasons)
        if findings.reasons:
            _check_values(file, findings)
            findings.raise_all()
        files: dict[Component, tuple[Blob, Path]] = {}
        for component, tensors in components.items():
            target = scratch / component
            order = _order(component, tensors, schema)
            written = write_tensors(target, tensors, {"component": component}, order)
            # By what was written, not by what it was made from: two checkpoints with the same
            # VAE share its blob, and a change from one to the other leaves it where it is.
            prediction = prediction_in(report)
            key = content_key(written.sha256, component, schema.digest, salt, prediction)
            files[component] = (Blob(key, written.sha256, written.size_bytes), target)
    report |= findings.finish()
    facts: dict[str, Any] = {"kind": declared, "family": SERVED_FAMILY, "fits": schema.digest}
    facts |= {"evidence": identity.evidence, "tensors": len(header.tensors)}
    facts["dtypes"] = sorted({info.dtype for info in header.tensors.values()})
    if header.markers:
        facts["markers"] = sorted(header.markers)[:50]
    return Ingested(files, {**facts, **report, "training": _training(header)})


def prediction_in(report: Mapping[str, Any]) -> Prediction:
    """What an asset's UNet predicts, by the report of its inspection."""
    said: Prediction = report.get("prediction_type", {}).get("value", "epsilon")
    if said not in PREDICTIONS:
        raise ValueError(f"a report with prediction type {said!r}")
    return said


def with_owners_prediction(report: Mapping[str, Any], said: Prediction | None) -> dict[str, Any]:
    """The report of a checkpoint after its owner said what it predicts, or took that back. What
    its file says stays in it, as ``found``."""
    known = report.get("prediction_type")
    if known is None and said is None:
        return dict(report)
    known = known or Predicts.from_report(None).report()
    found = known.get("found") if known["source"] == _OWNER else known
    if said is None:
        return {**report, "prediction_type": found or known}
    own = {"value": said, "source": _OWNER, **({"found": found} if found else {})}
    return {**report, "prediction_type": own}


def _check_values(file: TensorFile, findings: Findings) -> None:
    """Of a file that is refused already: what else is wrong with it."""
    for name, info in file.header.tensors.items():
        if info.dtype in CANONICAL_FLOATS:
            findings.check_finite(name, file.read_weights(name))


def _training(header: Header) -> dict[str, str]:
    """What trainers write of themselves and of what they were given (``ss_*`` and the like):
    advisory, private to the owner, and no longer than anybody reads."""
    kept: dict[str, str] = {}
    left = _MAX_TRAINING_CHARS
    for name, value in sorted(header.metadata.items()):
        text = value if len(value) <= _MAX_VALUE_CHARS else value[:_MAX_VALUE_CHARS] + "…"
        left -= len(name) + len(text)
        if left < 0:
            break
        kept[name] = text
    return kept


def _order(
    component: Component, tensors: Mapping[str, Planned], schema: ParameterSchema
) -> list[str] | None:
    """As the engine stacks them, so that it reads a stack at a time."""
    if component in MODEL_COMPONENTS:
        return stacking_order(schema.components[component])
    return lora.stacking_order(tensors, schema) if component == "lora" else None


def _convert(
    file: TensorFile,
    kind: AssetKind,
    schema: ParameterSchema,
    findings: Findings,
    word: OwnersWord,
) -> tuple[dict[Component, dict[str, Planned]], dict[str, Any]]:
    if kind == "lora":
        tensors, report = lora.convert(file, schema, findings, word.adapter_config)
        return {"lora": tensors}, report
    if kind == "textual_inversion":
        tensors, report = inversion.convert(file, schema, findings)
        return {"textual_inversion": tensors}, report
    if kind == "vae":
        tensors, report = checkpoint.convert_vae(file, schema, findings)
        return {"vae": tensors}, report
    said = word.prediction
    try:
        report = {"prediction_type": find_prediction(file).report()}
    except IngestRejected:
        if said is None:
            raise
        # Without ``found``: there is nothing to go back to when the owner takes the word back.
        report = {"prediction_type": {"value": said, "source": _OWNER}}
    report = with_owners_prediction(report, said)
    components, facts = checkpoint.convert_checkpoint(file, schema, findings)
    return components, {**facts, **report}
