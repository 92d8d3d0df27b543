"""Determine a checkpoint's prediction type from its file.

By precedence, after the owner's declaration: marker tensors (``v_pred``, ``ztsnr``, as in ComfyUI
and Forge); a diffusers folder's scheduler; metadata (Stability AI's ``modelspec.prediction_type``,
trainers' fields); a noise schedule (``alphas_cumprod``) that ends at zero. The default is epsilon.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from assets.errors import IngestRejected
from assets.families.sdxl import SDXL_SCHEDULE
from assets.formats.tensors import CANONICAL_FLOATS, TensorFile
from assets.prediction import PREDICTIONS, Prediction, PredictionFinding

#: The scheduler's metadata key in a packed diffusers folder.
SCHEDULER_METADATA = "scheduler_config"

_EPSILON, _VELOCITY = "epsilon", "v_prediction"
_TYPES_BY_NAME: Mapping[str, str] = {
    "epsilon": _EPSILON, "eps": _EPSILON, "noise": _EPSILON,
    "v": _VELOCITY, "v_prediction": _VELOCITY, "v-prediction": _VELOCITY, "v_pred": _VELOCITY,
    "vpred": _VELOCITY, "velocity": _VELOCITY,
}  # fmt: skip
_TYPE_FIELDS = ("modelspec.prediction_type", "prediction_type")
_ZERO_SNR_FIELDS = (
    "ztsnr", "zsnr", "zero_terminal_snr", "ss_zero_terminal_snr", "rescale_betas_zero_snr",
)  # fmt: skip
_TRUE = ("true", "1", "yes")
_EDM_MARKERS = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
_PREFIXES = ("", "model.diffusion_model.")
_SCHEDULE_FIELDS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
#: SDXL's last ᾱ is 0.0047; at zero terminal SNR, about zero.
_NEARLY_ZERO = 1e-4
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What one source states; ``is_zero_snr``: zero terminal SNR."""

    source: str
    type: str | None = None
    is_zero_snr: bool = False


def find_prediction(file: TensorFile) -> PredictionFinding:
    """Return the prediction type that a checkpoint's file states.

    Raises:
        IngestRejected: the type or noise schedule is not supported.
    """
    metadata = file.header.metadata
    scheduler = _scheduler_in(metadata)
    evidence = [
        *_markers(file),
        *(_from_scheduler(scheduler) if scheduler is not None else ()),
        *_from_metadata(metadata),
        *_from_schedule(file),
    ]
    return _resolve(evidence)


def prediction_of_scheduler(config: Mapping[str, object]) -> PredictionFinding:
    """Return the type that a ``scheduler_config.json`` states.

    Raises:
        IngestRejected: as ``find_prediction``.
    """
    return _resolve(list(_from_scheduler(config)))


def _resolve(evidence: Sequence[_Evidence]) -> PredictionFinding:
    typed = next((each for each in evidence if each.type is not None), None)
    zero = next((each for each in evidence if each.is_zero_snr), None)
    value: Prediction = "epsilon"
    sources = []
    if typed is not None and (zero is None or typed.type == _VELOCITY):
        value = "v_prediction" if typed.type == _VELOCITY else "epsilon"
        sources.append(typed.source)
    if zero is not None:  # the input is pure noise: epsilon cannot work
        value = "v_prediction_zero_snr"
        sources.append(zero.source)
    kind = _EPSILON if value == "epsilon" else _VELOCITY
    contradictions = tuple(each.source for each in evidence if each.type not in (None, kind))
    source = ", ".join(dict.fromkeys(sources)) or "nothing says otherwise"
    return PredictionFinding(value, source, contradictions)


def _markers(file: TensorFile) -> Iterator[_Evidence]:
    names = {*file.header.tensors, *file.header.markers}

    def has_marker(name: str) -> bool:
        return any(prefix + name in names for prefix in _PREFIXES)

    for name in _EDM_MARKERS:
        if has_marker(name):
            raise _unsupported("EDM", f"tensor {name!r}")
    if has_marker("v_pred"):
        yield _Evidence("tensor 'v_pred'", _VELOCITY)
    if has_marker("ztsnr"):
        yield _Evidence("tensor 'ztsnr'", is_zero_snr=True)


def _scheduler_in(metadata: Mapping[str, str]) -> Mapping[str, object] | None:
    raw = metadata.get(SCHEDULER_METADATA)
    if raw is None:
        return None
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise IngestRejected(f"{SCHEDULER_METADATA} in its metadata is not a JSON object")
    return config


def _from_scheduler(config: Mapping[str, object]) -> Iterator[_Evidence]:
    source = "scheduler_config.json"
    name = str(config.get("_class_name", ""))
    for prefix, prediction in (("EDM", "EDM"), ("FlowMatch", "flow")):
        if name.startswith(prefix):
            raise _unsupported(prediction, f"{source}: {name[:_SHOWN_CHARS]}")
    if config.get("trained_betas") is not None:
        raise IngestRejected(f"its noise schedule (trained_betas in {source}) is not supported")
    for field in _SCHEDULE_FIELDS:
        value = config.get(field, SDXL_SCHEDULE[field])
        if value != SDXL_SCHEDULE[field]:
            raise IngestRejected(
                f"its noise schedule ({field} {value!r:.60} in {source}) is not supported; "
                f"SDXL's is {SDXL_SCHEDULE[field]!r}"
            )
    is_zero_snr = bool(config.get("rescale_betas_zero_snr"))
    yield _Evidence(source, _type_of(config.get("prediction_type"), source), is_zero_snr)


def _from_metadata(metadata: Mapping[str, str]) -> Iterator[_Evidence]:
    for field in _TYPE_FIELDS:
        if field in metadata:
            source = f"metadata {field}"
            yield _Evidence(source, _type_of(metadata[field], source))
    if metadata.get("ss_v_parameterization", "").lower() in _TRUE:
        yield _Evidence("metadata ss_v_parameterization", _VELOCITY)
    for field in _ZERO_SNR_FIELDS:
        if metadata.get(field, "").strip().lower() in _TRUE:
            yield _Evidence(f"metadata {field}", is_zero_snr=True)


def _from_schedule(file: TensorFile) -> Iterator[_Evidence]:
    for name in ("alphas_cumprod", "model.alphas_cumprod"):
        info = file.header.tensors.get(name)
        if info is None or info.dtype not in CANONICAL_FLOATS or len(info.shape) != 1:
            continue
        if info.shape[0] > 10_000:
            continue
        if float(file.read(name)[-1].float()) < _NEARLY_ZERO:
            yield _Evidence(f"tensor {name!r} ends in zero", is_zero_snr=True)


def _type_of(value: object, source: str) -> str | None:
    if value is None or value == "":
        return None
    kind = _TYPES_BY_NAME.get(str(value).strip().lower())
    if kind is None:
        raise _unsupported(str(value)[:_SHOWN_CHARS], source)
    return kind


def _unsupported(prediction: str, source: str) -> IngestRejected:
    return IngestRejected(
        f"its prediction type is {prediction!r} ({source}), which is not supported; "
        f"{', '.join(PREDICTIONS)} are. If that is wrong, set prediction_type on the asset"
    )
