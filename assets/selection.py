"""The assets of a request by name, before they are resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AssetSelection:
    """LoRAs with weights, inversions with trigger words, styles."""

    checkpoint: str | None = None
    vae: str | None = None
    loras: Mapping[str, float] = field(default_factory=dict)
    inversions: Mapping[str, str] = field(default_factory=dict)
    #: Where they differ from the UNet's.
    lora_text_weights: Mapping[str, float] = field(default_factory=dict)
    #: In the order of their application.
    styles: tuple[str, ...] = ()
