"""Convert an uploaded file to canonical files, or reject it with every reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, assert_never

from assets.asset import AssetKind
from assets.content import Blob, Component, content_key
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema, stacking_order
from assets.formats import checkpoint, inversion, lora
from assets.formats.findings import Findings
from assets.formats.header import Header, read_header
from assets.formats.identify import identify
from assets.formats.prediction_source import find_prediction
from assets.formats.relatives import find_distilled
from assets.formats.tensors import CANONICAL_FLOATS, PlannedTensor, TensorFile, write_tensors
from assets.ingest.rules import ACCEPTED, SERVED_FAMILY, check_family, mismatch
from assets.prediction import PREDICTIONS, Prediction, PredictionFinding, PredictionReport
from assets.report import Report

_OWNER = "owner"
_MAX_TRAINING_CHARS, _MAX_VALUE_CHARS = 32_768, 1024


class DeclarationJson(TypedDict):
    prediction_type: Prediction | None
    adapter_config: Mapping[str, object] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerDeclaration:
    """The owner's declarations; ``adapter_config`` is PEFT's ``adapter_config.json``."""

    prediction: Prediction | None = None
    adapter_config: Mapping[str, object] | None = None

    @classmethod
    def from_json(cls, value: DeclarationJson) -> OwnerDeclaration:
        return cls(prediction=value["prediction_type"], adapter_config=value["adapter_config"])

    def to_json(self) -> DeclarationJson:
        return {"prediction_type": self.prediction, "adapter_config": self.adapter_config}


@dataclass(frozen=True, slots=True)
class Ingested:
    """The canonical files in a scratch folder, and the report."""

    files: Mapping[Component, tuple[Blob, Path]]
    report: Report


def ingest_file(
    path: Path,
    declared: AssetKind,
    schema: ParameterSchema,
    salt: bytes | None,
    scratch: Path,
    declaration: OwnerDeclaration = OwnerDeclaration(),
) -> Ingested:
    """Write the canonical form of ``path`` into ``scratch``, one tensor in memory at a time.

    ``salt`` is the tenant's; None for a public asset.

    Raises:
        IngestRejected: the file cannot be used; carries every reason.
    """
    header = read_header(path)
    identity = identify(header.shapes)
    check_family(identity)
    if identity.kind == "checkpoint" and (relative := find_distilled(header.shapes, schema)):
        raise IngestRejected(f"this is {relative.name} ({relative.evidence}); {ACCEPTED}")
    assert identity.kind is not None
    findings = Findings()
    if identity.kind != declared:
        findings.refuse(mismatch(identity, declared))
    with TensorFile(path) as file:
        try:
            convert = CONVERTERS[identity.kind]
            components, report = convert(file, schema, findings, declaration)
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
            # Of the written bytes, not the source: checkpoints share a common VAE's blob.
            prediction = prediction_in(report)
            key = content_key(written.sha256, component, schema.digest, salt, prediction)
            files[component] = (Blob(key, written.sha256, written.size_bytes), target)
    report |= findings.finish()
    facts = Report(
        kind=declared,
        family=SERVED_FAMILY,
        fits=schema.digest,
        evidence=identity.evidence,
        tensors=len(header.tensors),
        dtypes=sorted({info.dtype for info in header.tensors.values()}),
    )
    if header.markers:
        facts["markers"] = sorted(header.markers)[:50]
    return Ingested(files, facts | report | Report(training=_training(header)))


def prediction_in(report: Report) -> Prediction:
    """Return a UNet's prediction type from its inspection report.

    Raises:
        ValueError: it is unknown.
    """
    finding = report.get("prediction_type")
    prediction = "epsilon" if finding is None else finding.get("value", "epsilon")
    if prediction not in PREDICTIONS:
        accepted = ", ".join(PREDICTIONS)
        raise ValueError(f"the report has prediction type {prediction!r}; known: {accepted}")
    return prediction


def with_owners_prediction(report: Report, declared: Prediction | None) -> Report:
    """Return the report with the owner's prediction type set, or removed (None).

    The file's own type is kept as ``found``.
    """
    current = report.get("prediction_type")
    if current is None and declared is None:
        return report
    current = current or PredictionFinding.from_report(None).report()
    from_file = current.get("found") if current["source"] == _OWNER else current
    if declared is None:
        return report | Report(prediction_type=from_file or current)
    own = PredictionReport(value=declared, source=_OWNER)
    if from_file:
        own["found"] = from_file
    return report | Report(prediction_type=own)


def _check_values(file: TensorFile, findings: Findings) -> None:
    for name, info in file.header.tensors.items():
        if info.dtype in CANONICAL_FLOATS:
            findings.check_finite(name, file.read_weights(name))


def _training(header: Header) -> dict[str, str]:
    """Return trainers' metadata (``ss_*`` and similar), truncated; untrusted, private to the
    owner."""
    kept: dict[str, str] = {}
    chars_left = _MAX_TRAINING_CHARS
    for name, value in sorted(header.metadata.items()):
        text = value if len(value) <= _MAX_VALUE_CHARS else value[:_MAX_VALUE_CHARS] + "…"
        chars_left -= len(name) + len(text)
        if chars_left < 0:
            break
        kept[name] = text
    return kept


def _order(
    component: Component, tensors: Mapping[str, PlannedTensor], schema: ParameterSchema
) -> list[str] | None:
    """Return the engine's stacking order, to read a stack at a time; None: sorted."""
    match component:
        case "unet" | "text_encoder" | "text_encoder_2" | "vae":
            return stacking_order(schema.components[component])
        case "lora":
            return lora.stacking_order(tensors, schema)
        case "textual_inversion":
            return None
        case _:
            assert_never(component)


#: The planned tensors by component, and the report.
Converted = tuple[dict[Component, dict[str, PlannedTensor]], Report]
Converter = Callable[[TensorFile, ParameterSchema, Findings, OwnerDeclaration], Converted]


def _lora(
    file: TensorFile, schema: ParameterSchema, findings: Findings, declaration: OwnerDeclaration
) -> Converted:
    tensors, report = lora.convert(file, schema, findings, declaration.adapter_config)
    return {"lora": tensors}, report


def _inversion(
    file: TensorFile, schema: ParameterSchema, findings: Findings, _: OwnerDeclaration
) -> Converted:
    tensors, report = inversion.convert(file, schema, findings)
    return {"textual_inversion": tensors}, report


def _vae(
    file: TensorFile, schema: ParameterSchema, findings: Findings, _: OwnerDeclaration
) -> Converted:
    tensors, report = checkpoint.convert_vae(file, schema, findings)
    return {"vae": tensors}, report


def _checkpoint(
    file: TensorFile, schema: ParameterSchema, findings: Findings, declaration: OwnerDeclaration
) -> Converted:
    declared = declaration.prediction
    try:
        report = Report(prediction_type=find_prediction(file).report())
    except IngestRejected:
        if declared is None:
            raise
        # No ``found``: the file has no supported type.
        report = Report(prediction_type=PredictionReport(value=declared, source=_OWNER))
    report = with_owners_prediction(report, declared)
    components, facts = checkpoint.convert_checkpoint(file, schema, findings)
    return components, facts | report


CONVERTERS: Mapping[AssetKind, Converter] = {
    "checkpoint": _checkpoint, "lora": _lora, "textual_inversion": _inversion, "vae": _vae,
}  # fmt: skip
