"""Import of a base model from a diffusers folder or a single safetensors file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from assets.base_model.manifest import ModelManifest, find_manifest, save_manifest
from assets.content import MODEL_COMPONENTS, Blob, Component, content_key
from assets.errors import IngestRejected
from assets.families.config import Configs
from assets.families.schema import ParameterSchema, stacking_order
from assets.families.sdxl import SDXL_CONFIGS, other_arithmetic, schema_of
from assets.formats.checkpoint import convert_checkpoint
from assets.formats.findings import Findings
from assets.formats.folder_weights import folder_config, folder_weights
from assets.formats.names import long_name
from assets.formats.prediction_source import find_prediction, prediction_of_scheduler
from assets.formats.tensors import PlannedTensor, TensorFile, write_tensors
from assets.prediction import Prediction, PredictionFinding
from assets.storage.object_paths import blob_key
from assets.storage.object_store import ObjectStore, put_file

Progress = Callable[[str], None]


def import_model(
    store: ObjectStore,
    path: Path,
    name: str,
    progress: Progress = lambda _: None,
    single_file_configs: Configs = SDXL_CONFIGS,
    prediction: Prediction | None = None,
) -> ModelManifest:
    """Convert and store the model, unless imported before.

    ``single_file_configs``: for a single file, which contains none. ``prediction`` overrides the
    files' type.

    Raises:
        IngestRejected: not an SDXL model; states what is missing.
    """
    if not path.exists():
        raise IngestRejected(f"there is no model at {path}")
    source = _fingerprint(path)
    predicts = _predicts(path) if prediction is None else PredictionFinding(prediction, "operator")
    known = find_manifest(store, name)
    if known is not None and (known.source, known.predicts.value) == (source, predicts.value):
        return known
    with ExitStack() as stack:
        if path.is_dir():
            configs, planned = _from_folder(path, stack)
        else:
            configs, planned = _from_single_file(path, single_file_configs, stack)
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="import-")))
        schema = ParameterSchema(
            {c: {n: p.shape for n, p in planned[c].items()} for c in MODEL_COMPONENTS}
        )
        _check_topology(path, configs, schema)
        parts: dict[Component, Blob] = {}
        for component in MODEL_COMPONENTS:
            progress(f"importing {component}")
            file = scratch / component
            order = stacking_order(schema.components[component])
            written = write_tensors(file, planned[component], {"component": component}, order)
            # A model folder has no single digest.
            key = content_key(written.sha256, component, schema.digest, None, predicts.value)
            blob = Blob(key, written.sha256, written.size_bytes)
            if store.size(blob_key(blob)) != blob.size_bytes:
                put_file(store, blob_key(blob), file)
            file.unlink()
            parts[component] = blob
    manifest = ModelManifest(name, source, configs, parts, schema, predicts)
    save_manifest(store, manifest)
    return manifest


def _check_topology(path: Path, configs: Configs, schema: ParameterSchema) -> None:
    for component, expected in schema_of(configs).components.items():
        actual = schema.components[component]
        if missing := sorted(set(expected) - set(actual)):
            raise IngestRejected(
                f"{path}: {component} lacks {len(missing)} tensors of SDXL, such as {missing[0]!r}"
            )
        if extra := sorted(set(actual) - set(expected)):
            raise IngestRejected(
                f"{path}: {component} has a tensor that SDXL does not have: {extra[0]!r}"
            )
        for name, shape in expected.items():
            if actual[name] != shape:
                raise IngestRejected(
                    f"{path}: {component} {name!r} has shape {actual[name]}; its config.json "
                    f"requires {shape}"
                )


def _predicts(path: Path) -> PredictionFinding:
    if path.is_dir():
        return prediction_of_scheduler(folder_config(path, "scheduler", "scheduler_config.json"))
    with TensorFile(path) as file:
        return find_prediction(file)


def _fingerprint(path: Path) -> str:
    """Digest names, sizes and modification times; read no file."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256(str(path.resolve()).encode())
    for file in files:
        if file.is_file():
            stat = file.stat()
            digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


_Read = tuple[dict[Component, dict[str, Any]], dict[Component, dict[str, PlannedTensor]]]


def _from_folder(path: Path, stack: ExitStack) -> _Read:
    configs: dict[Component, dict[str, Any]] = {}
    planned: dict[Component, dict[str, PlannedTensor]] = {}
    for component in MODEL_COMPONENTS:
        config = folder_config(path, component)
        if not config:
            missing = path / component / "config.json"
            raise IngestRejected(f"{path} is not a diffusers SDXL folder: {missing} is missing")
        if differences := other_arithmetic(component, config):
            raise IngestRejected(*(f"{path}: {component}: {each}" for each in differences))
        configs[component] = dict(config)
        tensors = folder_weights(path, component, stack, canonical=True)
        if tensors is None:
            raise IngestRejected(f"{path} has no .safetensors weights of the {component}")
        planned[component] = {
            long_name(component, name): tensor
            for name, tensor in tensors.items()
            if not name.endswith("position_ids")
        }
    return configs, planned


def _from_single_file(path: Path, configs: Configs, stack: ExitStack) -> _Read:
    schema = schema_of(configs)
    file = stack.enter_context(TensorFile(path))
    findings = Findings()
    parts, report = convert_checkpoint(file, schema, findings)
    findings.raise_all()
    if report["from_base"]:
        missing = ", ".join(report["from_base"])
        raise IngestRejected(f"{path} lacks {missing}; a base model must have all components")
    return {c: dict(configs[c]) for c in MODEL_COMPONENTS}, dict(parts)
