"""Where assets are, and bringing them there."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from assets.asset import Asset
from assets.library.library import Library
from assets.principal import Principal
from serving.generation.backend import Tiers
from serving.generation.contract import Residency


@dataclass(frozen=True, slots=True)
class AssetResidency:
    """The locations of an asset's parts, by content key; keys in no tier are missing."""

    asset: Asset
    places: Mapping[str, Residency]


class Placement:
    def __init__(self, library: Library, tiers: Tiers) -> None:
        self._library = library
        self._tiers = tiers

    async def warm(self, principal: Principal, reference: str) -> Mapping[str, str]:
        """Load an asset into host RAM on every node; return the tier found on, by replica.

        Raises:
            AssetNotFound, AssetNotReady.
        """
        asset = await asyncio.to_thread(self._library.usable, principal, reference)
        return await self._tiers.warm(tuple(asset.parts.values()))

    async def residency(self, principal: Principal, reference: str) -> AssetResidency:
        """Return the locations of an asset's parts.

        Raises:
            AssetNotFound, AssetNotReady.
        """
        asset = await asyncio.to_thread(self._library.usable, principal, reference)
        keys = [blob.key for blob in asset.parts.values()]
        return AssetResidency(asset, await self._tiers.residency(keys))

    async def forget_dead(self, among: Collection[str] | None = None) -> int:
        """Evict the keys without a live asset; return their number.

        ``among``: keys that just lost an asset; None: all resident keys.
        """
        keys = await self._tiers.resident() if among is None else among
        dead = await asyncio.to_thread(self._library.upkeep.dead, keys)
        if dead:
            await self._tiers.forget(dead)
        return len(dead)
