"""Measure whether an asset changes the image and keeps it finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from assets.asset import AssetKind
from assets.content import Blob, Component


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect of an asset on a small test image.

    ``rms`` is the root mean square difference between the images with the asset at weight 1 and
    without it, on a scale of 0 to 255; None if the image is not finite.
    """

    rms: float | None

    def report(self) -> dict[str, Any]:
        finite = self.rms is not None
        return {**asdict(self), "finite": finite, "changes_picture": finite and self.rms != 0.0}


class EffectProbe(Protocol):
    """Generates test images with the served model, if it is small enough to do so per upload."""

    def probe(self, kind: AssetKind, parts: Mapping[Component, Blob]) -> Effect | None:
        """Return the asset's effect; None if the served model is too large."""
