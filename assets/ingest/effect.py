"""Measure whether an asset changes the image and keeps it finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

from assets.asset import AssetKind
from assets.content import Blob, Component


@dataclass(frozen=True, slots=True)
class Effect:
    """An asset's effect on a small test image.

    ``rms``: the root mean square difference that weight 1 makes, from 0 to 255; None if not finite.
    """

    rms: float | None

    def report(self) -> dict[str, object]:
        finite = self.rms is not None
        return {**asdict(self), "finite": finite, "changes_picture": finite and self.rms != 0.0}


class EffectProbe(Protocol):
    """Generates test images, if the served model is small enough."""

    def probe(self, kind: AssetKind, parts: Mapping[Component, Blob]) -> Effect | None:
        """None if the served model is too large."""
