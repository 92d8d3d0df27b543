"""What the platform asks of the library for itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from assets.asset import Asset
from assets.library.records import AssetRecords
from assets.library.references import BlobRecords
from assets.storage.object_paths import BLOBS, PREVIEWS, asset_of_preview, blob_of


class Upkeep:
    """Authorizes nothing."""

    def __init__(
        self, records: AssetRecords, blobs: BlobRecords, now: Callable[[], float] = time.time
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._now = now

    def is_downloadable(self, key: str) -> bool:
        """Whether a signed URL still works: its asset is not deleted or rekeyed."""
        if key.startswith(BLOBS):
            return bool(self._blobs.live([blob_of(key)]))
        if key.startswith(PREVIEWS):
            asset = self._records.get(asset_of_preview(key))
            return asset is None or not asset.is_deleted
        return True

    def dead(self, keys: Collection[str]) -> set[str]:
        """Return those ``keys`` to which no live asset refers."""
        return set(keys) - self._blobs.live(keys)

    def stale_uploads(self, older_than_s: float) -> Sequence[Asset]:
        """Uploads unchanged for ``older_than_s`` (dead ingest). They count as changed now."""
        stale = self._records.stale("uploaded", self._now() - older_than_s)
        touched = (self._records.update(a.id, {}, expect=("uploaded",)) for a in stale)
        return [asset for asset in touched if asset is not None]
