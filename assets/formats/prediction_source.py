"""Finds out what a checkpoint's UNet predicts, from all the places where people say so.

In order of precedence, behind the owner's word: marker tensors (``v_pred``, ``ztsnr``: ComfyUI
and Forge read these); the scheduler's configuration of a diffusers folder; metadata (the
Stability AI model specification's ``modelspec.prediction_type``, and what trainers call it); a
noise schedule kept among the tensors (``alphas_cumprod``) that ends in noise alone. Nothing said
means noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assets.errors import IngestRejected
from assets.families.sdxl import SDXL_SCHEDULE
from assets.formats.tensors import CANONICAL_FLOATS, TensorFile
from assets.prediction import PREDICTIONS, Prediction, Predicts

#: Where a packed diffusers folder keeps its scheduler's configuration.
SCHEDULER_METADATA = "scheduler_config"

_EPSILON, _VELOCITY = "epsilon", "v_prediction"
_WORDS: Mapping[str, str] = {
    "epsilon": _EPSILON, "eps": _EPSILON, "noise": _EPSILON,
    "v": _VELOCITY, "v_prediction": _VELOCITY, "v-prediction": _VELOCITY, "v_pred": _VELOCITY,
    "vpred": _VELOCITY, "velocity": _VELOCITY,
}  # fmt: skip
_TYPE_FIELDS = ("modelspec.prediction_type", "prediction_type")
_ZERO_SNR_FIELDS = (
    "ztsnr", "zsnr", "zero_terminal_snr", "ss_zero_terminal_snr", "rescale_betas_zero_snr",
)  # fmt: skip
_TRUE = ("true", "1", "yes")
#: Marker tensors of noise schedules that are not served.
_EDM_MARKERS = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
_PREFIXES = ("", "model.diffusion_model.")
#: What a scheduler's configuration says of the noise schedule itself.
_SCHEDULE_FIELDS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
#: The last ᾱ of SDXL's own schedule is 0.0047; of a rescaled one zero, or nearly.
_NEARLY_ZERO = 1e-4
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class _Said:
    """One source: a type, or None; whether the schedule ends in noise alone."""

    source: str
    type: str | None = None
    is_zero_snr: bool = False


def find_prediction(file: TensorFile) -> Predicts:
    """By a checkpoint's own file.

    Raises:
        IngestRejected: the model predicts something that is not served; says what, and where it
        is said.
    """
    metadata = file.header.metadata
    scheduler = _scheduler_in(metadata)
    said = [
        *_markers(file),
        *(_from_scheduler(scheduler) if scheduler is not None else ()),
        *_from_metadata(metadata),
        *_from_schedule(file),
    ]
    return _weighed(said)


def prediction_of_scheduler(config: Mapping[str, Any]) -> Predicts:
    """Of a diffusers folder, by its ``scheduler_config.json``.

    Raises:
        IngestRejected: as ``find_prediction``.
    """
    return _weighed(list(_from_scheduler(config)))


def _weighed(said: Sequence[_Said]) -> Predicts:
    typed = next((each for each in said if each.type is not None), None)
    zero = next((each for each in said if each.is_zero_snr), None)
    value: Prediction = "epsilon"
    sources = []
    if typed is not None and (zero is None or typed.type == _VELOCITY):
        value = "v_prediction" if typed.type == _VELOCITY else "epsilon"
        sources.append(typed.source)
    if zero is not None:  # noise cannot be predicted from noise alone: it must be velocity
        value = "v_prediction_zero_snr"
        sources.append(zero.source)
    kind = _EPSILON if value == "epsilon" else _VELOCITY
    others = tuple(each.source for each in said if each.type not in (None, kind))
    return Predicts(value, ", ".join(dict.fromkeys(sources)) or "nothing says otherwise", others)


def _markers(file: TensorFile) -> Iterator[_Said]:
    names = {*file.header.tensors, *file.header.markers}

    def marked(name: str) -> bool:
        return any(prefix + name in names for prefix in _PREFIXES)

    for name in _EDM_MARKERS:
        if marked(name):
            raise _not_served("EDM", f"tensor {name!r}")
    if marked("v_pred"):
        yield _Said("tensor 'v_pred'", _VELOCITY)
    if marked("ztsnr"):
        yield _Said("tensor 'ztsnr'", is_zero_snr=True)


def _scheduler_in(metadata: Mapping[str, str]) -> Mapping[str, Any] | None:
    raw = metadata.get(SCHEDULER_METADATA)
    if raw is None:
        return None
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise IngestRejected(f"{SCHEDULER_METADATA} in its metadata is no JSON object")
    return config


def _from_scheduler(config: Mapping[str, Any]) -> Iterator[_Said]:
    source = "scheduler_config.json"
    name = str(config.get("_class_name", ""))
    for begins, what in (("EDM", "EDM"), ("FlowMatch", "flow")):
        if name.startswith(begins):
            raise _not_served(what, f"{source}: {name[:_SHOWN_CHARS]}")
    if config.get("trained_betas") is not None:
        raise IngestRejected(f"its noise schedule (trained_betas in {source}) is not served")
    for field in _SCHEDULE_FIELDS:
        value = config.get(field, SDXL_SCHEDULE[field])
        if value != SDXL_SCHEDULE[field]:
            raise IngestRejected(
                f"its noise schedule ({field} {value!r:.60} in {source}) is not served; SDXL's is "
                f"{SDXL_SCHEDULE[field]!r}"
            )
    is_zero_snr = bool(config.get("rescale_betas_zero_snr"))
    yield _Said(source, _type_of(config.get("prediction_type"), source), is_zero_snr)


def _from_metadata(metadata: Mapping[str, str]) -> Iterator[_Said]:
    for field in _TYPE_FIELDS:
        if field in metadata:
            source = f"metadata {field}"
            yield _Said(source, _type_of(metadata[field], source))
    if metadata.get("ss_v_parameterization", "").lower() in _TRUE:
        yield _Said("metadata ss_v_parameterization", _VELOCITY)
    for field in _ZERO_SNR_FIELDS:
        if metadata.get(field, "").strip().lower() in _TRUE:
            yield _Said(f"metadata {field}", is_zero_snr=True)


def _from_schedule(file: TensorFile) -> Iterator[_Said]:
    for name in ("alphas_cumprod", "model.alphas_cumprod"):
        info = file.header.tensors.get(name)
        if info is None or info.dtype not in CANONICAL_FLOATS or len(info.shape) != 1:
            continue
        if info.shape[0] > 10_000:
            continue
        if float(file.read(name)[-1].float()) < _NEARLY_ZERO:
            yield _Said(f"tensor {name!r} ends in zero", is_zero_snr=True)


def _type_of(value: object, source: str) -> str | None:
    if value is None or value == "":
        return None
    found = _WORDS.get(str(value).strip().lower())
    if found is None:
        raise _not_served(str(value)[:_SHOWN_CHARS], source)
    return found


def _not_served(what: str, source: str) -> IngestRejected:
    return IngestRejected(
        f"its prediction type is {what!r} ({source}), which is not served; "
        f"{', '.join(PREDICTIONS)} are. If that is wrong, say prediction_type with the asset"
    )
