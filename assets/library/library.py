"""The library's use cases: list, get, change, delete, resolve; ``uploads`` has the others.

Nothing here loads a tensor: a gateway imports it without torch. What converts
bytes is in workshop.py.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Literal

from cachetools import TTLCache

from assets.access import Verb, may, require
from assets.asset import COMMONS, Asset
from assets.errors import (
    AssetNotFound,
    AssetNotReady,
    InvalidAsset,
    NameTaken,
    QuotaExceeded,
)
from assets.failpoint import reach
from assets.library.purge import Purge
from assets.library.records import AssetRecords, Page, Query
from assets.library.references import BlobRecords
from assets.library.resolve import BASE_NAME, AssetSelection, Resolved, find, find_base, resolve
from assets.library.uploads import Quota, Uploads
from assets.library.validation import check_expiry, check_name, checked_visibility, normal_name
from assets.prediction import Prediction
from assets.principal import Principal
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

#: What an asset says whose bytes the store has lost.
LOST = "its bytes were lost; upload it again"
#: Of a name whose versions are looked through.
MAX_VERSIONS = 10_000
#: A deleted asset can be restored for a week.
KEPT_DELETED_S = 7 * 24 * 3600.0
#: Everybody's, and in every request; another one is drawn with everywhere within this time.
_BASE_S = 3.0


@dataclass(frozen=True, slots=True)
class Change:
    """What an owner changes; None leaves it as it is. ``expires_at_s`` 0 means never."""

    name: str | None = None
    description: str | None = None
    trigger_words: Sequence[str] | None = None
    tags: Sequence[str] | None = None
    licence: str | None = None
    visibility: str | None = None
    shared_with: Sequence[str] | None = None
    expires_at_s: float | None = None
    #: Of a checkpoint; ``auto`` for what its file says.
    prediction_type: Prediction | Literal["auto"] | None = None


class Library:
    """Every method asks ``may()`` itself; none trusts its caller to have asked."""

    def __init__(
        self,
        records: AssetRecords,
        blobs: BlobRecords,
        store: ObjectStore,
        parts: PartStore | None = None,
        now: Callable[[], float] = time.time,
        quota: Quota = lambda _: None,
    ) -> None:
        """``quota``: a tenant's storage limit in bytes, None for no limit."""
        self._records = records
        self._blobs = blobs
        self._store = store
        self._now = now
        self._base: TTLCache[str, Asset] = TTLCache(1, _BASE_S)
        self._base_lock = Lock()
        self._purge = Purge(records, blobs, store)
        self.uploads = Uploads(records, blobs, store, parts or open_parts(store), now, quota)

    def _find(self, principal: Principal, reference: str, verb: Verb) -> Asset:
        return find(self._records, principal, reference, verb, self._now())

    def get(self, principal: Principal, reference: str) -> Asset:
        """Raises AssetNotFound."""
        return self._find(principal, reference, "read")

    def list(self, principal: Principal, query: Query) -> Page:
        """Of a query for public assets or for those shared with the tenant: those that are
        ready. Otherwise the tenant's own."""
        owner = COMMONS if query.owner == "octoai" else query.owner
        query = replace(query, name=query.name and normal_name(query.name))
        if query.visibility == "public" or query.shared_with is not None:
            return self._records.list(replace(query, owner=owner, status="ready"))
        member = None if principal.role == "owner" else principal.member_id
        return self._records.list(replace(query, tenant_id=principal.tenant_id, member_id=member))

    def delete(self, principal: Principal, reference: str, *, for_good: bool = False) -> Asset:
        """Unusable at once by anybody; the name means the version before it, or is free again.
        ``for_good``: it cannot be restored, and takes no more of the tenant's storage.

        Raises:
            AssetNotFound.
        """
        asset = self._find(principal, reference, "delete")
        changed = self._delete(asset)
        if changed is None:  # in between it was deleted, or its ingest ended
            return self.delete(principal, asset.id, for_good=for_good)
        if for_good:
            self._purge(changed)
        return changed

    def _delete(self, asset: Asset) -> Asset | None:
        changed = self._records.update(
            asset.id, {"status": "deleted", "deleted_at_s": self._now()}, expect=(asset.status,)
        )
        if changed is not None:
            reach("delete.recorded")
            self.uploads.discard(asset)
            if not asset.parts and not asset.report:  # it was never usable
                self._purge(changed)
        return changed

    def delete_expired(self) -> Sequence[Asset]:
        """Those whose time has come; they were unusable from that moment on."""
        gone = (self._delete(asset) for asset in self._records.expired(self._now()))
        return [asset for asset in gone if asset is not None]

    def update(self, principal: Principal, reference: str, change: Change) -> Asset:
        """What people read of an asset and who may see it; never what it is.

        Raises:
            AssetNotFound, InvalidAsset, NameTaken; Forbidden, to share for others than owners.
        """
        asset = self._find(principal, reference, "update")
        changes: dict[str, Any] = {}
        if change.name is not None:
            name = normal_name(change.name)
            change = replace(change, name=name)
            check_name(name)
        if change.description is not None:
            changes["description"] = change.description
        given = {
            "trigger_words": change.trigger_words, "tags": change.tags, "licence": change.licence,
        }  # fmt: skip
        data: dict[str, Any] = {
            name: value if isinstance(value, str) else list(value)
            for name, value in given.items()
            if value is not None
        }
        if change.prediction_type is not None:
            if asset.kind != "checkpoint":
                raise InvalidAsset("prediction_type", f"a {asset.kind} has none")
            own = None if change.prediction_type == "auto" else change.prediction_type
            known = asset.report.get("prediction_type", {})
            if own is None and known.get("source") == "owner" and "found" not in known:
                raise InvalidAsset("prediction_type", "its file says nothing that is served")
            data["prediction_type"] = own
        if data:
            changes["data"] = {**asset.data, **data}
        if change.visibility is not None or change.shared_with is not None:
            wanted = change.visibility or asset.visibility
            shared_with = asset.shared_with if change.shared_with is None else change.shared_with
            changes["visibility"] = checked_visibility(principal, wanted, shared_with)
            changes["shared_with"] = tuple(sorted(set(shared_with)))
        if change.expires_at_s is not None:
            changes["expires_at_s"] = change.expires_at_s or None
            check_expiry(changes["expires_at_s"], self._now())
        if change.name is not None:
            self._check_series(principal, asset)
            renamed = self._records.rename(asset.id, change.name)
            if renamed is None:
                raise AssetNotFound(reference)
            asset = renamed
        if not changes:
            return asset
        if asset.preview and "visibility" in changes:
            changes["data"] = {**asset.data, **data, "preview": self._moved_preview(asset)}
        changed = self._records.update(asset.id, changes, expect=(asset.status,))
        if changed is None:  # deleted or finished in between
            return self.update(principal, asset.id, replace(change, name=None))
        if asset.preview and changed.preview != asset.preview:
            self._drop_preview(asset.preview)
        return changed

    def _drop_preview(self, key: str) -> None:
        self._blobs.unkeep([key])
        self._store.delete(key)

    def _moved_preview(self, asset: Asset) -> str | None:
        """Copy the preview to a new key, and return it. URLs of the old key then end with the
        sharing under which they were made, including those that the store itself signed."""
        if asset.preview is None or self._store.size(asset.preview) is None:
            return None
        key = preview_key(asset.id, secrets.token_hex(32))
        data = read_bytes(self._store, asset.preview)
        put_bytes(self._store, key, data)
        self._blobs.keep(key, asset.tenant_id, len(data))
        return key

    def _check_series(self, principal: Principal, asset: Asset) -> None:
        """A rename takes every version along, so each must be one's own to change.

        Raises:
            InvalidAsset: some are not.
        """
        query = Query(tenant_id=asset.tenant_id, name=asset.name, limit=MAX_VERSIONS)
        if not all(may(principal, "update", each) for each in self._records.list(query).assets):
            raise InvalidAsset("name", "some of its versions are others' own; ask an owner")

    def check_update(self, principal: Principal, reference: str) -> None:
        """Raises AssetNotFound or Forbidden unless the asset may be changed."""
        self._find(principal, reference, "update")

    def usable(self, principal: Principal, reference: str) -> Asset:
        """Raises AssetNotFound; AssetNotReady when it cannot be drawn with yet."""
        asset = self._find(principal, reference, "use")
        if asset.status != "ready":
            raise AssetNotReady(reference, asset.status, asset.status_details)
        return asset

    def set_preview(self, principal: Principal, reference: str, key: str) -> Asset:
        """The picture under ``key`` is the asset's preview. Raises AssetNotFound."""
        asset = self._find(principal, reference, "update")
        changed = self._records.update(
            asset.id, {"data": {**asset.data, "preview": key}}, expect=(asset.status,)
        )
        if changed is None:
            return self.set_preview(principal, reference, key)
        if asset.preview and asset.preview != key:
            self._drop_preview(asset.preview)
        return changed

    def restore(self, principal: Principal, asset_id: str) -> Asset:
        """A deleted asset as it was, for KEPT_DELETED_S after it was deleted.

        Raises:
            AssetNotFound: unknown, another's, not deleted, or deleted for too long.
            NameTaken: by an asset that is no version of this one; rename that one first.
            QuotaExceeded: there is no room for it by now.
        """
        require(principal, "restore")
        asset = self._records.get(asset_id)
        if asset is None or not may(principal, "restore", asset) or not asset.parts:
            raise AssetNotFound(asset_id)
        if self._now() - (asset.deleted_at_s or 0.0) > KEPT_DELETED_S:
            raise AssetNotFound(asset_id)
        taken = self._records.find(asset.tenant_id, asset.name)
        if taken is not None and taken.kind != asset.kind:
            raise NameTaken(asset.name)
        most = principal.plan.assets
        mine = Query(tenant_id=asset.tenant_id, limit=1)
        if most is not None and self._records.list(mine).total >= most:
            raise QuotaExceeded("assets", most)
        limit = principal.plan.storage_bytes
        if limit is not None and self.stored_bytes(principal) > limit:
            raise QuotaExceeded("bytes of storage", limit)
        changes: dict[str, Any] = {"status": "ready", "deleted_at_s": None}
        if any(self._store.size(blob_key(blob)) is None for blob in asset.parts.values()):
            changes |= {"status": "error", "status_details": LOST}
        if asset.expires_at_s is not None and asset.expires_at_s <= self._now():
            changes["expires_at_s"] = None
        changed = self._records.update(asset_id, changes, expect=("deleted",))
        if changed is None:
            raise AssetNotFound(asset_id)
        if not changed.parts:  # its time was up in this very moment
            self._records.update(
                asset_id, {"status": "deleted", "deleted_at_s": asset.deleted_at_s}
            )
            raise AssetNotFound(asset_id)
        return changed

    def resolve(self, principal: Principal, wanted: AssetSelection) -> Resolved:
        """Raises what ``assets.library.resolve.resolve`` does."""
        with self._base_lock:
            base = self._base.get(BASE_NAME)
            if base is None:
                base = self._base[BASE_NAME] = find_base(self._records)
        return resolve(self._records, principal, wanted, self._now(), base)

    def used(self, resolved: Resolved) -> None:
        """A picture was drawn with these assets."""
        if resolved.asset_ids:
            self._records.used(resolved.asset_ids)

    def stored_bytes(self, principal: Principal) -> int:
        """All that is kept for the tenant."""
        return self._blobs.stored_bytes(principal.tenant_id)

    def may_fetch(self, key: str) -> bool:
        """Whether what lies under this key of the store is still anybody's to read: a signed URL
        outlives neither a deletion nor a change of the content key."""
        if key.startswith(BLOBS):
            return bool(self._blobs.live([blob_of(key)]))
        if key.startswith(PREVIEWS):
            asset = self._records.get(asset_of_preview(key))
            return asset is None or not asset.is_deleted
        return True

    def dead(self, keys: Collection[str]) -> set[str]:
        """Of the content keys of canonical files, those that nobody can ask for any more."""
        return set(keys) - self._blobs.live(keys)

    def miskeyed(self) -> Sequence[Asset]:
        """Those whose content keys do not say whether they are public; to be ingested again."""
        return self._records.miskeyed()

    def stale_uploads(self, older_than_s: float) -> Sequence[Asset]:
        """Uploads whose ingest seems to have died half way; each is returned once in a while."""
        stale = self._records.stale("uploaded", self._now() - older_than_s)
        touched = (self._records.update(a.id, {}, expect=("uploaded",)) for a in stale)
        return [asset for asset in touched if asset is not None]
