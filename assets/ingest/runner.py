"""The seam between the library and whatever runs its conversions."""

from __future__ import annotations

from typing import Protocol

from assets.asset import Asset


class IngestRunner(Protocol):
    """Starts the ingest of an uploaded asset somewhere, without waiting for it."""

    async def start(self, asset: Asset) -> None: ...
