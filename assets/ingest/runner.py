"""The interface between the library and the process that runs conversions."""

from __future__ import annotations

from typing import Protocol

from assets.asset import Asset


class IngestRunner(Protocol):
    """Starts an asset's ingest without waiting for it."""

    async def start(self, asset: Asset) -> None: ...


class NoIngest:
    """Without effect."""

    async def start(self, asset: Asset) -> None: ...
