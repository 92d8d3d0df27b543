"""What a UNet predicts: how its output is read, which neither its weights nor their shapes tell.

``v_prediction``: velocity (Salimans and Ho 2022, arXiv:2202.00512). ``…_zero_snr``: its noise
schedule is rescaled so that the last step is noise alone (Lin et al. 2023, arXiv:2305.08891).

It is part of a UNet's content key, as a suffix: the same weights read in another way are another
content. Noise (``epsilon``) adds nothing, so that keys are what they were before others were known.
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
#: Of a content key without a suffix.
KEY_CHARS = 41
_BY_SUFFIX = {suffix: prediction for prediction, suffix in _SUFFIXES.items()}


@dataclass(frozen=True, slots=True)
class Predicts:
    """``source`` says where it was found; ``contradicted_by`` who says otherwise."""

    value: Prediction
    source: str
    contradicted_by: tuple[str, ...] = ()

    def report(self) -> dict[str, Any]:
        said: dict[str, Any] = {"value": self.value, "source": self.source}
        if self.contradicted_by:
            said["contradicted_by"] = list(self.contradicted_by)
        return said

    @classmethod
    def from_report(cls, said: Mapping[str, Any] | None) -> Predicts:
        """None: from before anything but noise was served."""
        if said is None:
            return cls("epsilon", "nothing says otherwise")
        return cls(said["value"], said["source"], tuple(said.get("contradicted_by", ())))


def key_suffix(prediction: Prediction) -> str:
    return _SUFFIXES[prediction]


def prediction_of(content_key: str) -> Prediction:
    """What the UNet of this content key predicts.

    Raises:
        ValueError: the key is of a later version, which knows another prediction.
    """
    suffix = content_key[KEY_CHARS:]
    prediction = _BY_SUFFIX.get(suffix)
    if prediction is None:
        raise ValueError(f"content key {content_key!r} has a prediction that is not known here")
    return prediction
