"""Does an asset change the picture, and is the picture one?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from assets.asset import AssetKind
from assets.content import Blob, Component


@dataclass(frozen=True, slots=True)
class Effect:
    """``rms`` is the root of the mean square difference of a small picture drawn with the asset
    at weight 1 and without it, of 255; None when the picture is not finite."""

    rms: float | None

    def report(self) -> dict[str, Any]:
        finite = self.rms is not None
        return {**asdict(self), "finite": finite, "changes_picture": finite and self.rms != 0.0}


class EffectProbe(Protocol):
    """Draws with the served model, where that is small enough to do so for every upload."""

    def probe(self, kind: AssetKind, parts: Mapping[Component, Blob]) -> Effect | None:
        """None where the served model is too large."""
