"""Measure whether an asset changes the image and keeps it finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from assets.asset import AssetKind
from assets.content import Blob, Component
from assets.report import EffectReport


@dataclass(frozen=True, slots=True)
class Effect:
    """An asset's effect on a small test image.

    ``rms``: the root mean square difference that weight 1 makes, from 0 to 255; None if not finite.
    """

    rms: float | None

    def report(self) -> EffectReport:
        finite = self.rms is not None
        changes = finite and self.rms != 0.0
        return EffectReport(rms=self.rms, finite=finite, changes_picture=changes)


class EffectProbe(Protocol):
    """Generates test images, if the served model is small enough."""

    def probe(self, kind: AssetKind, parts: Mapping[Component, Blob]) -> Effect | None:
        """None if the served model is too large."""
