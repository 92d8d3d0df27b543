"""Permanent deletion of an asset: its row, search words, preview and unshared blobs."""

from __future__ import annotations

from assets.asset import Asset
from assets.content import ORIGINAL
from assets.library.records import AssetRecords, Query
from assets.library.references import BlobRecords
from assets.storage.object_paths import stored_blob_key
from assets.storage.object_store import ObjectStore


class Purge:
    def __init__(self, records: AssetRecords, blobs: BlobRecords, store: ObjectStore) -> None:
        self._records = records
        self._blobs = blobs
        self._store = store

    def __call__(self, asset: Asset) -> None:
        """Purge a deleted asset; ignore any other."""
        if asset.deleted_at_s is None or not self._records.purge(asset.id):
            return
        if asset.preview:
            self._blobs.unkeep([asset.preview])
            self._store.delete(asset.preview)
        # Only the tenant's ingests claim its private blobs. The garbage collector waits for running
        # ingests before it deletes others.
        if self._records.list(Query(tenant_id=asset.tenant_id, status="uploaded", limit=1)).total:
            return
        for key in {blob.key for blob in asset.blobs if blob.key.startswith(("t", ORIGINAL))}:
            # A later claim: another asset is about to use it.
            if self._blobs.mark_for_deletion(key, asset.deleted_at_s):
                self._store.delete(stored_blob_key(key))
                self._blobs.forget(key)
