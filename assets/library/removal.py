"""Deletes and restores assets."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from assets.access import may, require
from assets.asset import Asset, AssetChanges
from assets.errors import AssetNotFound, NameTaken, QuotaExceeded
from assets.failpoint import reach
from assets.kinds import KINDS
from assets.library.concurrent_change import change_asset
from assets.library.purge import Purge
from assets.library.records import AssetRecords, Query
from assets.library.references import BlobRecords
from assets.library.uploads import Uploads
from assets.principal import Principal
from assets.storage.object_paths import blob_key
from assets.storage.object_store import ObjectStore

LOST = "its bytes were lost; upload it again"
RESTORABLE_S = 7 * 24 * 3600.0


class Removal:
    """Methods that take a principal authorize the call."""

    def __init__(
        self,
        records: AssetRecords,
        blobs: BlobRecords,
        store: ObjectStore,
        uploads: Uploads,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._store = store
        self._uploads = uploads
        self._now = now
        self._purge = Purge(records, blobs, store)

    def delete(self, principal: Principal, reference: str, *, for_good: bool = False) -> Asset:
        """Delete an asset; its name refers to the previous version or is free. ``for_good`` also
        frees its storage and rules out restoration.

        Raises:
            AssetNotFound, Changed.
        """
        now_s = self._now()
        deleted = change_asset(self._records, principal, reference, "delete", now_s, self._delete)
        if for_good:
            self._purge(deleted)
        return deleted

    def delete_expired(self) -> Sequence[Asset]:
        """Delete and return expired assets."""
        deleted = (self._delete(asset) for asset in self._records.expired(self._now()))
        return [asset for asset in deleted if asset is not None]

    def _delete(self, asset: Asset) -> Asset | None:
        deleted = self._records.update(
            asset.id,
            {"status": "deleted", "deleted_at_s": self._now()},
            revision=asset.revision,
        )
        if deleted is not None:
            reach("delete.recorded")
            self._uploads.discard(asset)
            if not (_is_whole(asset) or asset.report):  # never ingested: nothing to restore
                self._purge(deleted)
        return deleted

    def restore(self, principal: Principal, asset_id: str) -> Asset:
        """Restore an asset within RESTORABLE_S of its deletion.

        Raises:
            AssetNotFound: also when not deleted, or deleted too long ago.
            NameTaken: by a live asset of another kind.
            QuotaExceeded: no room in the plan.
        """
        require(principal, "restore")
        asset = self._records.get(asset_id)
        if asset is None or not may(principal, "restore", asset):
            raise AssetNotFound(asset_id)
        if not _is_whole(asset):
            raise AssetNotFound(asset_id)
        if self._now() - (asset.deleted_at_s or 0.0) > RESTORABLE_S:
            raise AssetNotFound(asset_id)
        namesake = self._records.find(asset.tenant_id, asset.name)
        if namesake is not None and namesake.kind != asset.kind:
            raise NameTaken(asset.name)
        max_assets = principal.plan.assets
        tenants_assets = Query(tenant_id=asset.tenant_id, limit=1)
        if max_assets is not None and self._records.list(tenants_assets).total >= max_assets:
            raise QuotaExceeded("assets", max_assets)
        max_bytes = principal.plan.storage_bytes
        if max_bytes is not None and self._blobs.stored_bytes(principal.tenant_id) > max_bytes:
            raise QuotaExceeded("bytes of storage", max_bytes)
        changes = AssetChanges(status="ready", deleted_at_s=None)
        if any(self._store.size(blob_key(blob)) is None for blob in asset.parts.values()):
            changes["status"], changes["status_details"] = "error", LOST
        if asset.expires_at_s is not None and asset.expires_at_s <= self._now():
            changes["expires_at_s"] = None
        restored = self._records.update(asset_id, changes, expect=("deleted",))
        if restored is None:
            raise AssetNotFound(asset_id)
        if not _is_whole(restored):  # purged at the same time
            self._records.update(
                asset_id, {"status": "deleted", "deleted_at_s": asset.deleted_at_s}
            )
            raise AssetNotFound(asset_id)
        return restored


def _is_whole(asset: Asset) -> bool:
    """Whether it has what its kind consists of: files, or hints alone."""
    return bool(asset.parts) if KINDS[asset.kind].has_file else bool(asset.hints)
