"""Brings records and bytes back together after whatever happened between them.

Idempotent, and safe beside everything else that runs: what is younger than the grace period
may be somebody's work in progress and is left alone.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from assets.asset import Asset
from assets.content import ORIGINAL
from assets.failpoint import reach
from assets.library.library import KEPT_DELETED_S, LOST
from assets.library.records import AssetRecords
from assets.library.references import BlobRecords
from assets.storage.multipart import PartStore, open_parts
from assets.storage.object_paths import (
    BLOBS,
    PREVIEWS,
    UPLOADS,
    blob_key,
    blob_of,
    stored_blob_key,
    upload_key,
)
from assets.storage.object_store import ObjectStore, Stored

log = logging.getLogger(__name__)

#: Work in progress is younger than this.
GRACE_S = 3600.0
#: An upload that nobody completed ends then.
UPLOAD_KEPT_S = 24 * 3600.0

#: Bytes are still coming, or being looked at.
_COMING = ("ready_to_upload", "uploading", "uploaded")

#: Of stored objects, those that must not be there any more.
Unwanted = Callable[[Sequence[Stored]], Collection[str]]


class Reconciler:
    """``others``: what else lies in the store, by prefix, and which of it is unwanted."""

    def __init__(
        self,
        records: AssetRecords,
        blobs: BlobRecords,
        store: ObjectStore,
        parts: PartStore | None = None,
        others: Mapping[str, Unwanted] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._store = store
        self._parts = parts or open_parts(store)
        self._others = others or {}
        self._now = now

    def run(self) -> Mapping[str, int]:
        """What was done, by kind of deed; all zero when everything was as it should be."""
        done: Counter[str] = Counter()
        deeds: dict[str, Callable[[], int]] = {
            "uploads_expired": self._expire_uploads,
            "part_uploads_aborted": self._abort_uploads,
            "assets_purged": self._purge,
            "blobs_collected": self._collect,
            "assets_lost": self._mark_lost,
            "assets_found": self._mark_found,
        }
        for prefix, unwanted in {
            BLOBS: self._unknown_blobs,
            UPLOADS: self._finished_uploads,
            PREVIEWS: self._unused_previews,
            **self._others,
        }.items():
            name = f"orphan_{prefix.rstrip('/')}_removed"
            deeds[name] = partial(self._remove, prefix, unwanted)
        for name, deed in deeds.items():
            try:
                done[name] = deed()
            except Exception:  # one that cannot be done keeps the others from nothing
                log.exception("%s failed; it will be tried again", name)
                done["failed"] += 1
        if any(done.values()):
            log.warning("reconciled: %s", {deed: n for deed, n in done.items() if n})
        return done

    def _expire_uploads(self) -> int:
        """Uploads that were begun and never completed."""
        for begun in self._records.stale("uploading", self._now() - GRACE_S):
            # Whoever put it together died: its parts are there still.
            self._records.update(begun.id, {"status": "ready_to_upload"}, expect=("uploading",))
        waiting = self._records.stale("ready_to_upload", self._now())
        stale = [a for a in waiting if a.created_at_s < self._now() - UPLOAD_KEPT_S]
        gone: dict[str, Any] = {"status": "deleted", "deleted_at_s": self._now()}
        gone["status_details"] = "nothing was uploaded in time"
        ended = [self._records.update(a.id, gone, expect=("ready_to_upload",)) for a in stale]
        for asset in ended:
            if asset is not None:
                self._records.purge(asset.id)
        self._weigh([asset for asset in waiting if asset not in stale])
        return sum(asset is not None for asset in ended)

    def _weigh(self, waiting: Sequence[Asset]) -> None:
        """Record the size of uploads that clients sent directly to the store."""
        if not waiting:
            return
        present = {stored.key: stored.size_bytes for stored in self._store.list(UPLOADS)}
        for asset in waiting:
            size = present.get(upload_key(asset.id), 0)
            if "upload" not in asset.data and asset.size_bytes < size:
                changes = {"size_bytes": size}
                self._records.update(asset.id, changes, expect=("ready_to_upload",))

    def _abort_uploads(self) -> int:
        """Uploads in parts that no asset waits for any more."""
        aborted = 0
        for begun in list(self._parts.begun()):
            asset = self._records.get(begun.key.removeprefix(UPLOADS))
            waits = asset is not None and asset.status in _COMING
            if not waits and begun.began_at_s < self._now() - GRACE_S:
                self._parts.abort(begun.key, begun.upload_id)
                aborted += 1
        return aborted

    def _purge(self) -> int:
        """Deleted assets that can no longer be restored let go of their bytes and their words."""
        dead = self._records.forgotten(self._now() - KEPT_DELETED_S)
        return sum(self._records.purge(asset.id) for asset in dead)

    def _collect(self) -> int:
        """Blobs that nothing refers to: first the bytes, then the record."""
        before_s = self._now() - GRACE_S
        collected = 0
        for key in self._blobs.garbage(before_s):
            if self._blobs.mark_for_deletion(key, before_s):
                reach("collect.doomed")
                self._store.delete(stored_blob_key(key))
                reach("collect.removed")
                self._blobs.forget(key)
                collected += 1
        return collected

    def _remove(self, prefix: str, unwanted: Unwanted) -> int:
        present = self._store.list(prefix)
        old = [stored for stored in present if stored.changed_at_s < self._now() - GRACE_S]
        orphans = unwanted(old)
        self._blobs.unkeep(orphans)
        for key in orphans:
            self._store.delete(key)
        return len(orphans)

    def _unknown_blobs(self, old: Sequence[Stored]) -> Collection[str]:
        keys = {blob_of(stored.key): stored.key for stored in old}
        known = self._blobs.known(keys)
        return [path for key, path in keys.items() if key not in known]

    def _mark_lost(self) -> int:
        """Assets whose bytes are gone, as a store that was restored from a backup leaves them.
        Where most seem to be gone it is the store that is, and nothing is marked."""
        present = {stored.key for stored in self._store.list(BLOBS)}
        # Without its original an asset is still usable.
        every = self._records.referred()
        referred = {key: ids for key, ids in every.items() if not key.startswith(ORIGINAL)}
        gone = [
            key
            for key in referred
            if stored_blob_key(key) not in present
            and self._store.size(stored_blob_key(key)) is None
        ]
        if len(gone) * 2 > len(referred):
            log.error(
                "%s of %s blobs are not in the store: is it mounted, and the right one?",
                len(gone), len(referred),
            )  # fmt: skip
            return 0
        lost = {asset_id for key in gone for asset_id in referred[key]}
        marked = {"status": "error", "status_details": LOST}
        ended = [self._records.update(i, marked, expect=("ready",)) for i in lost]
        return sum(asset is not None for asset in ended)

    def _mark_found(self) -> int:
        """Assets whose bytes were lost and are there again."""
        found = [
            asset
            for asset in self._records.stale("error", self._now())
            if asset.status_details == LOST
            and asset.parts
            and all(self._store.size(blob_key(b)) == b.size_bytes for b in asset.parts.values())
        ]
        ready = {"status": "ready", "status_details": ""}
        ended = [self._records.update(a.id, ready, expect=("error",)) for a in found]
        return sum(asset is not None for asset in ended)

    def _finished_uploads(self, old: Sequence[Stored]) -> Collection[str]:
        def is_open(asset: Asset | None) -> bool:
            return asset is not None and asset.status in _COMING

        ids = {stored.key.removeprefix(UPLOADS).split("/")[0] for stored in old}
        finished = {upload_key(i) for i in ids if not is_open(self._records.get(i))}
        return [
            s.key for s in old if UPLOADS + s.key.removeprefix(UPLOADS).split("/")[0] in finished
        ]

    def _unused_previews(self, old: Sequence[Stored]) -> Collection[str]:
        used = self._records.previews()
        return [stored.key for stored in old if stored.key not in used]
