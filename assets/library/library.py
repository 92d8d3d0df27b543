"""The library's use cases: list, get, resolve; uploads, editing and removal have their own.

Nothing in this package imports torch: gateways import it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock

from cachetools import TTLCache

from assets.access import Verb
from assets.asset import COMMONS, Asset
from assets.errors import (
    AssetNotReady,
)
from assets.library.editing import Editing
from assets.library.records import AssetRecords, Page, Query
from assets.library.references import BlobRecords
from assets.library.removal import Removal
from assets.library.resolve import BASE_NAME, Resolved, find, find_base, resolve
from assets.library.upkeep import Upkeep
from assets.library.uploads import Quota, Uploads
from assets.library.validation import normal_name
from assets.principal import Principal
from assets.selection import AssetSelection
from assets.storage.multipart import PartStore, open_parts
from assets.storage.object_store import ObjectStore

#: Every request needs the base checkpoint's record.
_BASE_CACHED_S = 3.0


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
        self._now = now
        self._base: TTLCache[str, Asset] = TTLCache(1, _BASE_CACHED_S)
        self._base_lock = Lock()
        self.uploads = Uploads(records, blobs, store, parts or open_parts(store), now, quota)
        self.editing = Editing(records, blobs, store, now)
        self.removal = Removal(records, blobs, store, self.uploads, now)
        self.upkeep = Upkeep(records, blobs, now)

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

    def usable(self, principal: Principal, reference: str) -> Asset:
        """Return a ready asset. Raises AssetNotFound or AssetNotReady."""
        asset = self._find(principal, reference, "use")
        if asset.status != "ready":
            raise AssetNotReady(reference, asset.status, asset.status_details)
        return asset

    def resolve(self, principal: Principal, selection: AssetSelection) -> Resolved:
        """Resolve a selection. Raises as ``resolve`` and ``find_base``."""
        with self._base_lock:
            base = self._base.get(BASE_NAME)
            if base is None:
                base = self._base[BASE_NAME] = find_base(self._records)
        return resolve(self._records, principal, selection, self._now(), base)

    def used(self, asset_ids: Sequence[str]) -> None:
        """Count a use of each asset."""
        if asset_ids:
            self._records.used(asset_ids)
