"""Stores converted files as blobs, beside a collector that deletes unreferenced ones."""

from __future__ import annotations

import time
from pathlib import Path

from assets.asset import AssetChanges
from assets.content import Blob, original_key, tenant_salt
from assets.errors import StoreError
from assets.failpoint import reach
from assets.ingest.convert import Ingested
from assets.library.references import BlobRecords
from assets.report import Report
from assets.storage.object_paths import blob_key
from assets.storage.object_store import ObjectStore, put_file

_CLAIM_TIMEOUT_S = 30.0


class BlobWriter:
    """``keeps_originals``: uploaded files are stored, too."""

    def __init__(
        self, blobs: BlobRecords, store: ObjectStore, secret: bytes, *, keeps_originals: bool
    ) -> None:
        self._blobs = blobs
        self._store = store
        self._secret = secret
        self.keeps_originals = keeps_originals

    def keep(self, ingested: Ingested, source: Path, digest: str, tenant_id: str) -> AssetChanges:
        """Store the canonical files and the original; return what the asset gets to know.

        Raises:
            StoreError.
        """
        original = None
        if self.keeps_originals:
            key = original_key(digest, tenant_salt(self._secret, tenant_id))
            original = Blob(key, digest, source.stat().st_size)
        files = list(ingested.files.values())
        # The inspected copy: the upload's object may have changed since.
        for blob, path in [*files, *([(original, source)] if original is not None else [])]:
            self._claim(blob)
            reach("ingest.claimed")
            if self._store.size(blob_key(blob)) != blob.size_bytes:
                put_file(self._store, blob_key(blob), path)
            reach("ingest.stored")
        parts = {component: blob for component, (blob, _) in ingested.files.items()}
        report = ingested.report | Report(source_sha256=digest)
        return AssetChanges(parts=parts, original=original, report=report)

    def copy(self, blob: Blob, renamed: Blob) -> None:
        """Store ``blob`` under another key, too. Raises StoreError."""
        self._claim(renamed)
        if self._store.size(blob_key(renamed)) != blob.size_bytes:
            self._store.copy(blob_key(blob), blob_key(renamed))

    def _claim(self, blob: Blob) -> None:
        """Claim a blob before storing it; wait while the collector deletes it."""
        deadline = time.monotonic() + _CLAIM_TIMEOUT_S
        while not self._blobs.claim(blob):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{blob.key} was still being deleted after {_CLAIM_TIMEOUT_S:g} s; try again"
                )
            time.sleep(0.05)
