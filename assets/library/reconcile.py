"""Reconcile records and stored bytes after crashes and data loss.

Idempotent, and safe while requests are served.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from assets.asset import INCOMPLETE, Asset, AssetChanges
from assets.content import ORIGINAL
from assets.failpoint import reach
from assets.library.records import AssetRecords
from assets.library.references import BlobRecords
from assets.library.removal import LOST, RESTORABLE_S
from assets.library.uploads import is_claimed
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
from assets.storage.object_store import ObjectStore, StoredObject

log = logging.getLogger(__name__)

#: Younger items may be in use.
GRACE_S = 3600.0
#: For uploads not completed.
UPLOAD_KEPT_S = 24 * 3600.0

_IN_PROGRESS = ("ready_to_upload", "uploading", "uploaded")

#: Returns the orphans' keys.
OrphanFilter = Callable[[Sequence[StoredObject]], Collection[str]]


class Reconciler:
    """Repairs a store. ``others``: orphan filters of further prefixes."""

    def __init__(
        self,
        records: AssetRecords,
        blobs: BlobRecords,
        store: ObjectStore,
        parts: PartStore | None = None,
        others: Mapping[str, OrphanFilter] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._store = store
        self._parts = parts or open_parts(store)
        self._others = others or {}
        self._now = now

    def run(self) -> Mapping[str, int]:
        """Return how many items each action changed: none when records and store agree."""
        done: Counter[str] = Counter()
        actions: dict[str, Callable[[], int]] = {
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
            actions[name] = partial(self._remove, prefix, unwanted)
        for name, action in actions.items():
            try:
                done[name] = action()
            except Exception:  # the other actions still run
                log.exception("%s failed; it is retried in the next run", name)
                done["failed"] += 1
        if any(done.values()):
            log.warning("reconciled: %s", {action: n for action, n in done.items() if n})
        return done

    def _expire_uploads(self) -> int:
        for asset in self._records.stale("uploading", self._now() - GRACE_S):
            if asset.upload is not None and asset.upload.claimed_until_s is None:
                # A process of an earlier build died while it assembled the parts.
                free = AssetChanges(upload=replace(asset.upload, claimed_until_s=0.0))
                self._records.update(asset.id, free, revision=asset.revision)
        waiting = [
            asset for status in INCOMPLETE for asset in self._records.stale(status, self._now())
        ]
        stale = [
            asset
            for asset in waiting
            if asset.created_at_s < self._now() - UPLOAD_KEPT_S
            and not is_claimed(asset, self._now())
        ]
        changes = AssetChanges(
            status="deleted",
            deleted_at_s=self._now(),
            status_details="nothing was uploaded in time",
        )
        updated = [self._records.update(a.id, changes, revision=a.revision) for a in stale]
        deleted = [asset for asset in updated if asset is not None]
        for asset in deleted:
            self._records.purge(asset.id)
        self._record_sizes([asset for asset in waiting if asset not in stale])
        return len(deleted)

    def _record_sizes(self, waiting: Sequence[Asset]) -> None:
        """Record what clients sent directly to the store."""
        if not waiting:
            return
        present = {stored.key: stored.size_bytes for stored in self._store.list(UPLOADS)}
        for asset in waiting:
            size = present.get(upload_key(asset.id), 0)
            if asset.upload is None and asset.size_bytes < size:
                self._records.update(asset.id, {"size_bytes": size}, expect=("ready_to_upload",))

    def _abort_uploads(self) -> int:
        aborted = 0
        for begun in list(self._parts.begun()):
            asset = self._records.get(begun.key.removeprefix(UPLOADS))
            waits = asset is not None and asset.status in _IN_PROGRESS
            if not waits and begun.began_at_s < self._now() - GRACE_S:
                self._parts.abort(begun.key, begun.upload_id)
                aborted += 1
        return aborted

    def _purge(self) -> int:
        purgeable = self._records.forgotten(self._now() - RESTORABLE_S)
        return sum(self._records.purge(asset.id) for asset in purgeable)

    def _collect(self) -> int:
        """First the bytes, then the record."""
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

    def _remove(self, prefix: str, unwanted: OrphanFilter) -> int:
        present = self._store.list(prefix)
        old = [stored for stored in present if stored.changed_at_s < self._now() - GRACE_S]
        orphans = unwanted(old)
        self._blobs.unkeep(orphans)
        for key in orphans:
            self._store.delete(key)
        return len(orphans)

    def _unknown_blobs(self, old: Sequence[StoredObject]) -> Collection[str]:
        keys = {blob_of(stored.key): stored.key for stored in old}
        known = self._blobs.known(keys)
        return [path for key, path in keys.items() if key not in known]

    def _mark_lost(self) -> int:
        """Mark assets with missing blobs. When over half are missing, the store itself is at fault:
        mark none."""
        present = {stored.key for stored in self._store.list(BLOBS)}
        # An asset is usable without its original.
        every = self._records.referred()
        referred = {key: ids for key, ids in every.items() if not key.startswith(ORIGINAL)}
        missing = [
            key
            for key in referred
            if stored_blob_key(key) not in present
            and self._store.size(stored_blob_key(key)) is None
        ]
        if len(missing) * 2 > len(referred):
            log.error(
                "%s of %s blobs are missing from the store; no asset is marked: check that the "
                "right store is mounted",
                len(missing), len(referred),
            )  # fmt: skip
            return 0
        lost = {asset_id for key in missing for asset_id in referred[key]}
        changes = AssetChanges(status="error", status_details=LOST)
        updated = [self._records.update(i, changes, expect=("ready",)) for i in lost]
        return sum(asset is not None for asset in updated)

    def _mark_found(self) -> int:
        """Undo :meth:`_mark_lost` when the blobs are back."""
        found = [
            asset
            for asset in self._records.stale("error", self._now())
            if asset.status_details == LOST
            and asset.parts
            and all(self._store.size(blob_key(b)) == b.size_bytes for b in asset.parts.values())
        ]
        changes = AssetChanges(status="ready", status_details="")
        updated = [self._records.update(a.id, changes, expect=("error",)) for a in found]
        return sum(asset is not None for asset in updated)

    def _finished_uploads(self, old: Sequence[StoredObject]) -> Collection[str]:
        def is_open(asset: Asset | None) -> bool:
            return asset is not None and asset.status in _IN_PROGRESS

        ids = {stored.key.removeprefix(UPLOADS).split("/")[0] for stored in old}
        finished = {upload_key(i) for i in ids if not is_open(self._records.get(i))}
        return [
            s.key for s in old if UPLOADS + s.key.removeprefix(UPLOADS).split("/")[0] in finished
        ]

    def _unused_previews(self, old: Sequence[StoredObject]) -> Collection[str]:
        used = self._records.previews()
        return [stored.key for stored in old if stored.key not in used]
