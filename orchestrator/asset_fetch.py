"""The record of one asset's fetch, as a receipt reports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TierName = Literal["gpu", "host", "disk", "peer", "store"]


@dataclass(frozen=True, slots=True)
class AssetFetch:
    """The tier a blob was found on, and the bytes and seconds to acquire it."""

    key: str
    tier: TierName
    bytes_moved: int
    fetch_s: float
