"""The library's use cases: list, get, update, delete, restore, resolve.

Nothing in this package imports torch: gateways import it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Literal

from cachetools import TTLCache

from assets.access import Verb, may, require
from assets.asset import COMMONS, Asset, AssetChanges
from assets.errors import (
    AssetNotFound,
    AssetNotReady,
    Changed,
    InvalidAsset,
    NameTaken,
    QuotaExceeded,
    StoreError,
)
from assets.failpoint import reach
from assets.kinds import KINDS, kinds_with
from assets.library.purge import Purge
from assets.library.records import AssetRecords, Page, Query
from assets.library.references import BlobRecords
from assets.library.resolve import BASE_NAME, Resolved, find, find_base, resolve
from assets.library.uploads import Quota, Uploads
from assets.library.validation import check_expiry, check_name, checked_visibility, normal_name
from assets.prediction import Prediction
from assets.principal import Principal
from assets.selection import AssetSelection
from assets.storage.multipart import PartStore, open_parts
from assets.storage.object_paths import (
    BLOBS,
    PREVIEWS,
    asset_of_preview,
    blob_key,
    blob_of,
    preview_key,
)
from assets.storage.object_store import ObjectStore, put_bytes, read_bytes

LOST = "its bytes were lost; upload it again"
#: In one rename.
MAX_VERSIONS = 10_000
RESTORABLE_S = 7 * 24 * 3600.0
#: Of a change that other requests cross.
_ATTEMPTS = 10
#: Every request needs the base checkpoint's record.
_BASE_CACHED_S = 3.0


@dataclass(frozen=True, slots=True)
class Change:
    """An update of an asset. None leaves a field unchanged; ``expires_at_s`` 0 means never."""

    name: str | None = None
    description: str | None = None
    trigger_words: Sequence[str] | None = None
    tags: Sequence[str] | None = None
    license: str | None = None
    visibility: str | None = None
    shared_with: Sequence[str] | None = None
    expires_at_s: float | None = None
    #: Checkpoints only; ``auto``: as detected from the file.
    prediction_type: Prediction | Literal["auto"] | None = None
    #: The asset's, as the client knows it.
    revision: int | None = None


def _owners_prediction(asset: Asset, wanted: Prediction | Literal["auto"]) -> Prediction | None:
    """Raises InvalidAsset: a kind without one, or a file that says nothing."""
    if not KINDS[asset.kind].has_prediction_type:
        kinds = " or ".join(kinds_with(lambda traits: traits.has_prediction_type))
        raise InvalidAsset("prediction_type", f"only a {kinds} has one; this is a {asset.kind}")
    if wanted != "auto":
        return wanted
    reported = asset.report.get("prediction_type", {})
    if reported.get("source") == "owner" and "found" not in reported:
        raise InvalidAsset(
            "prediction_type", "the file states no type that is served; set one explicitly"
        )
    return None


class Library:
    """Methods that take a principal authorize the call."""

    def __init__(
        self,
        records: AssetRecords,
        blobs: BlobRecords,
        store: ObjectStore,
        parts: PartStore | None = None,
        now: Callable[[], float] = time.time,
        quota: Quota = lambda _: None,
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._store = store
        self._now = now
        self._base: TTLCache[str, Asset] = TTLCache(1, _BASE_CACHED_S)
        self._base_lock = Lock()
        self._purge = Purge(records, blobs, store)
        self.uploads = Uploads(records, blobs, store, parts or open_parts(store), now, quota)

    def _find(self, principal: Principal, reference: str, verb: Verb) -> Asset:
        return find(self._records, principal, reference, verb, self._now())

    def get(self, principal: Principal, reference: str) -> Asset:
        """Return the asset. Raises AssetNotFound."""
        return self._find(principal, reference, "read")

    def list(self, principal: Principal, query: Query) -> Page:
        """List what the member sees of its tenant's; ready assets for a public or shared query."""
        owner = COMMONS if query.owner == "octoai" else query.owner
        query = replace(query, name=query.name and normal_name(query.name))
        if query.visibility == "public" or query.shared_with is not None:
            return self._records.list(replace(query, owner=owner, status="ready"))
        member = None if principal.role == "owner" else principal.member_id
        return self._records.list(replace(query, tenant_id=principal.tenant_id, member_id=member))

    def delete(self, principal: Principal, reference: str, *, for_good: bool = False) -> Asset:
        """Delete an asset; its name refers to the previous version or is free. ``for_good`` also
        frees its storage and rules out restoration.

        Raises:
            AssetNotFound, Changed.
        """
        changed = self._change(principal, reference, "delete", self._delete)
        if for_good:
            self._purge(changed)
        return changed

    def _change(
        self,
        principal: Principal,
        reference: str,
        verb: Verb,
        change: Callable[[Asset], Asset | None],
    ) -> Asset:
        """Find an asset and change it; again if another request changed it meanwhile.

        Raises:
            AssetNotFound.
            Changed: other requests were faster each time.
        """
        for _ in range(_ATTEMPTS):
            asset = self._find(principal, reference, verb)
            changed = change(asset)
            if changed is not None:
                return changed
            reference = asset.id  # its name may be another's now
        raise Changed(reference)

    def _delete(self, asset: Asset) -> Asset | None:
        changed = self._records.update(
            asset.id,
            {"status": "deleted", "deleted_at_s": self._now()},
            revision=asset.revision,
        )
        if changed is not None:
            reach("delete.recorded")
            self.uploads.discard(asset)
            if not asset.parts and not asset.report:  # never ingested: nothing to restore
                self._purge(changed)
        return changed

    def delete_expired(self) -> Sequence[Asset]:
        """Delete and return expired assets."""
        deleted = (self._delete(asset) for asset in self._records.expired(self._now()))
        return [asset for asset in deleted if asset is not None]

    def update(self, principal: Principal, reference: str, change: Change) -> Asset:
        """Change an asset's metadata or visibility; never its bytes.

        Raises:
            AssetNotFound, InvalidAsset, NameTaken.
            Forbidden: the role may not share.
            Changed: another request changed it, since ``change.revision`` or all the time.
        """
        if change.name is not None:
            change = replace(change, name=normal_name(change.name))
            check_name(change.name or "")

        def apply(asset: Asset) -> Asset | None:
            nonlocal change
            if change.revision not in (None, asset.revision):
                raise Changed(asset.reference)
            changes = self._changes(principal, asset, change)
            if change.name is not None:
                self._check_series(principal, asset)
                renamed = self._records.rename(asset.id, change.name, revision=asset.revision)
                if renamed is None:
                    return None
                asset, change = renamed, replace(change, name=None, revision=None)
            return self._apply(asset, changes) if changes else asset

        return self._change(principal, reference, "update", apply)

    def _apply(self, asset: Asset, changes: AssetChanges) -> Asset | None:
        if asset.preview and "visibility" in changes:
            changes["preview"] = self._moved_preview(asset)
        changed = self._records.update(asset.id, changes, revision=asset.revision)
        if "preview" in changes:
            unused = changes["preview"] if changed is None else asset.preview
            if unused:
                self._drop_preview(unused)
        return changed

    def _changes(self, principal: Principal, asset: Asset, change: Change) -> AssetChanges:
        changes = AssetChanges()
        if change.description is not None:
            changes["description"] = change.description
        if change.trigger_words is not None:
            changes["trigger_words"] = tuple(change.trigger_words)
        if change.tags is not None:
            changes["tags"] = tuple(change.tags)
        if change.license is not None:
            changes["license"] = change.license
        if change.prediction_type is not None:
            changes["prediction_type"] = _owners_prediction(asset, change.prediction_type)
        if change.visibility is not None or change.shared_with is not None:
            visibility = change.visibility or asset.visibility
            shared_with = asset.shared_with if change.shared_with is None else change.shared_with
            changes["visibility"] = checked_visibility(principal, visibility, shared_with)
            changes["shared_with"] = tuple(sorted(set(shared_with)))
        if change.expires_at_s is not None:
            changes["expires_at_s"] = change.expires_at_s or None
            check_expiry(changes["expires_at_s"], self._now())
        return changes

    def _drop_preview(self, key: str) -> None:
        self._blobs.unkeep([key])
        self._store.delete(key)

    def _moved_preview(self, asset: Asset) -> str | None:
        """A new key ends old URLs, even those that the store signed."""
        if asset.preview is None:
            return None
        try:
            data = read_bytes(self._store, asset.preview)
        except StoreError:
            if self._store.size(asset.preview) is not None:
                raise
            return None  # lost, or replaced meanwhile: then the change is repeated
        key = preview_key(asset.id, secrets.token_hex(32))
        put_bytes(self._store, key, data)
        self._blobs.keep(key, asset.tenant_id, len(data))
        return key

    def _check_series(self, principal: Principal, asset: Asset) -> None:
        query = Query(tenant_id=asset.tenant_id, name=asset.name, limit=MAX_VERSIONS)
        if not all(may(principal, "update", each) for each in self._records.list(query).assets):
            raise InvalidAsset(
                "name",
                "some versions belong to other members; ask an owner of the organisation to rename",
            )

    def check_update(self, principal: Principal, reference: str) -> None:
        """Raise AssetNotFound or Forbidden unless the principal may update."""
        self._find(principal, reference, "update")

    def usable(self, principal: Principal, reference: str) -> Asset:
        """Return a ready asset. Raises AssetNotFound or AssetNotReady."""
        asset = self._find(principal, reference, "use")
        if asset.status != "ready":
            raise AssetNotReady(reference, asset.status, asset.status_details)
        return asset

    def set_preview(self, principal: Principal, reference: str, key: str) -> Asset:
        """Make the image under ``key`` the preview. Raises AssetNotFound, Changed."""

        def show(asset: Asset) -> Asset | None:
            changed = self._records.update(asset.id, {"preview": key}, revision=asset.revision)
            if changed is not None and asset.preview and asset.preview != key:
                self._drop_preview(asset.preview)
            return changed

        return self._change(principal, reference, "update", show)

    def restore(self, principal: Principal, asset_id: str) -> Asset:
        """Restore an asset within RESTORABLE_S of its deletion.

        Raises:
            AssetNotFound: also when not deleted, or deleted too long ago.
            NameTaken: by a live asset of another kind.
            QuotaExceeded: no room in the plan.
        """
        require(principal, "restore")
        asset = self._records.get(asset_id)
        if asset is None or not may(principal, "restore", asset) or not asset.parts:
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
        if max_bytes is not None and self.stored_bytes(principal) > max_bytes:
            raise QuotaExceeded("bytes of storage", max_bytes)
        changes = AssetChanges(status="ready", deleted_at_s=None)
        if any(self._store.size(blob_key(blob)) is None for blob in asset.parts.values()):
            changes["status"], changes["status_details"] = "error", LOST
        if asset.expires_at_s is not None and asset.expires_at_s <= self._now():
            changes["expires_at_s"] = None
        changed = self._records.update(asset_id, changes, expect=("deleted",))
        if changed is None:
            raise AssetNotFound(asset_id)
        if not changed.parts:  # purged at the same time
            self._records.update(
                asset_id, {"status": "deleted", "deleted_at_s": asset.deleted_at_s}
            )
            raise AssetNotFound(asset_id)
        return changed

    def resolve(self, principal: Principal, selection: AssetSelection) -> Resolved:
        """Resolve a selection. Raises as ``resolve`` and ``find_base``."""
        with self._base_lock:
            base = self._base.get(BASE_NAME)
            if base is None:
                base = self._base[BASE_NAME] = find_base(self._records)
        return resolve(self._records, principal, selection, self._now(), base)

    def used(self, resolved: Resolved) -> None:
        """Count a use of each asset."""
        if resolved.asset_ids:
            self._records.used(resolved.asset_ids)

    def stored_bytes(self, principal: Principal) -> int:
        """The tenant's stored bytes, including restorable assets."""
        return self._blobs.stored_bytes(principal.tenant_id)

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

    def miskeyed(self) -> Sequence[Asset]:
        """Assets to ingest again: their content keys do not match visibility or prediction type."""
        return self._records.miskeyed()

    def stale_uploads(self, older_than_s: float) -> Sequence[Asset]:
        """Uploads unchanged for ``older_than_s`` (dead ingest). They count as changed now."""
        stale = self._records.stale("uploaded", self._now() - older_than_s)
        touched = (self._records.update(a.id, {}, expect=("uploaded",)) for a in stale)
        return [asset for asset in touched if asset is not None]
