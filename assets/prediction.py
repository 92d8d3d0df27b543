"""The prediction type of a UNet, which neither its weights nor their shapes reveal.

``epsilon``: noise. ``v_prediction``: velocity (Salimans and Ho 2022, arXiv:2202.00512).
``…_zero_snr``: with a noise schedule rescaled so that the last step is pure noise (Lin et al. 2023,
arXiv:2305.08891).

The type is a suffix of a UNet's content key, because the same weights generate other images under
another type. ``epsilon`` adds no suffix, so keys from before the other types remain valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Prediction = Literal["epsilon", "v_prediction", "v_prediction_zero_snr"]

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)

_SUFFIXES: Mapping[Prediction, str] = {
    "epsilon": "", "v_prediction": "-v", "v_prediction_zero_snr": "-vz",
}  # fmt: skip
#: Length of a content key without its suffix.
KEY_CHARS = 41
_BY_SUFFIX = {suffix: prediction for prediction, suffix in _SUFFIXES.items()}


@dataclass(frozen=True, slots=True)
class PredictionFinding:
    """A prediction type, the ``source`` that stated it and the sources that contradict it."""

    value: Prediction
    source: str
    contradicted_by: tuple[str, ...] = ()

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = {"value": self.value, "source": self.source}
        if self.contradicted_by:
            report["contradicted_by"] = list(self.contradicted_by)
        return report

    @classmethod
    def from_report(cls, report: Mapping[str, Any] | None) -> PredictionFinding:
        """Parse the result of :meth:`report`. None stands for a report from before other types
        than ``epsilon`` were served."""
        if report is None:
            return cls("epsilon", "nothing says otherwise")
        return cls(report["value"], report["source"], tuple(report.get("contradicted_by", ())))


def key_suffix(prediction: Prediction) -> str:
    return _SUFFIXES[prediction]


def prediction_of(content_key: str) -> Prediction:
    """Return the prediction type of the UNet with this content key.

    Raises:
        ValueError: the suffix is unknown: a newer version made the key.
    """
    suffix = content_key[KEY_CHARS:]
    prediction = _BY_SUFFIX.get(suffix)
    if prediction is None:
        raise ValueError(f"content key {content_key!r} has an unknown prediction type")
    return prediction
