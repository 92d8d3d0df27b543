"""The prediction type of a UNet, which neither its weights nor their shapes reveal.

``epsilon``: noise. ``v_prediction``: velocity (Salimans and Ho 2022, arXiv:2202.00512).
``…_zero_snr``: with a schedule rescaled to end in pure noise (Lin et al. 2023, arXiv:2305.08891).

It changes the images, so a UNet's content key ends with it; not for ``epsilon``, so older keys stay
valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict, get_args

Prediction = Literal["epsilon", "v_prediction", "v_prediction_zero_snr"]

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)

_SUFFIXES: Mapping[Prediction, str] = {
    "epsilon": "", "v_prediction": "-v", "v_prediction_zero_snr": "-vz",
}  # fmt: skip
#: Without the suffix.
KEY_CHARS = 41
_BY_SUFFIX = {suffix: prediction for prediction, suffix in _SUFFIXES.items()}


class PredictionReport(TypedDict):
    """Of the inspection's report. ``found``: the file's own, beneath the owner's."""

    value: Prediction
    source: str
    contradicted_by: NotRequired[list[str]]
    found: NotRequired[PredictionReport]


@dataclass(frozen=True, slots=True)
class PredictionFinding:
    """A prediction type, its ``source`` and the sources that contradict it."""

    value: Prediction
    source: str
    contradicted_by: tuple[str, ...] = ()

    def report(self) -> PredictionReport:
        report = PredictionReport(value=self.value, source=self.source)
        if self.contradicted_by:
            report["contradicted_by"] = list(self.contradicted_by)
        return report

    @classmethod
    def from_report(cls, report: PredictionReport | None) -> PredictionFinding:
        """None is from before other types than ``epsilon``."""
        if report is None:
            return cls("epsilon", "nothing says otherwise")
        return cls(report["value"], report["source"], tuple(report.get("contradicted_by", ())))


def key_suffix(prediction: Prediction) -> str:
    return _SUFFIXES[prediction]


def prediction_of(content_key: str) -> Prediction:
    """Return the type of a UNet's content key.

    Raises:
        ValueError: unknown suffix (from a newer version).
    """
    suffix = content_key[KEY_CHARS:]
    prediction = _BY_SUFFIX.get(suffix)
    if prediction is None:
        raise ValueError(f"content key {content_key!r} has an unknown prediction type")
    return prediction
