"""The library's use cases: create, receive, complete, list, get, delete, resolve.

Nothing here loads a tensor: a gateway imports it without torch. What converts
bytes is in workshop.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from assets.access import may, require
from assets.asset import ASSET_KINDS, COMMONS, Asset
from assets.errors import AssetNotFound, InvalidAsset
from assets.ids import new_asset_id
from assets.keys import upload_key
from assets.principal import Principal
from assets.records import AssetRecords, Page, Query
from assets.resolve import Resolved, Wanted, find, resolve
from assets.store import ObjectStore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}\Z")
MAX_UPLOAD_BYTES = 16 << 30
#: A deleted asset can be restored for a week.
KEPT_DELETED_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class NewAsset:
    """What a client says of an asset before it sends the bytes."""

    name: str
    kind: str
    description: str = ""
    is_public: bool = False
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What an owner changes; None leaves it as it is."""

    name: str | None = None
    description: str | None = None
    trigger_words: Sequence[str] | None = None
    tags: Sequence[str] | None = None


class Library:
    """Every method asks ``may()`` itself; none trusts its caller to have asked."""

    def __init__(
        self,
        records: AssetRecords,
        store: ObjectStore,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._store = store
        self._now = now

    def _check_name(self, name: str) -> None:
        if not _NAME.match(name):
            raise InvalidAsset(
                "name", "a name is 1 to 128 letters, digits, '-', '_' or '.', and begins with one"
            )

    def create(self, principal: Principal, new: NewAsset) -> Asset:
        """Raises Forbidden, InvalidAsset, NameTaken."""
        require(principal, "create")
        self._check_name(new.name)
        if new.kind not in ASSET_KINDS:
            raise InvalidAsset(
                "asset_type", f"{new.kind!r} is not supported; accepted: {', '.join(ASSET_KINDS)}"
            )
        now = self._now()
        asset = Asset(
            id=new_asset_id(now),
            tenant_id=principal.tenant_id,
            owner=principal.tenant_name,
            name=new.name,
            kind=new.kind,
            created_at_s=now,
            description=new.description,
            is_public=new.is_public,
            data=new.data or {},
        )
        self._records.add(asset)
        return asset

    def complete(self, principal: Principal, reference: str) -> Asset:
        """The client says that its bytes are there. Repeating it is harmless.

        Raises:
            InvalidAsset: the store holds no bytes for this asset.
        """
        asset = find(self._records, principal, reference, "update")
        if asset.status != "ready_to_upload":
            return asset
        size = self._store.size(upload_key(asset.id))
        if size is None:
            raise InvalidAsset(
                "asset_id", "nothing was uploaded yet; PUT the file to put_url first"
            )
        if size > MAX_UPLOAD_BYTES:
            raise InvalidAsset("asset_id", f"{size} bytes; at most {MAX_UPLOAD_BYTES} are accepted")
        changed = self._records.update(
            asset.id, {"status": "uploaded", "size_bytes": size}, expect=("ready_to_upload",)
        )
        return changed or self.get(principal, asset.id)

    def may_receive(self, asset_id: str) -> bool:
        """Whether bytes may still be put for this asset: once it is complete they are fixed."""
        asset = self._records.get(asset_id)
        return asset is not None and asset.status == "ready_to_upload"

    def get(self, principal: Principal, reference: str) -> Asset:
        """Raises AssetNotFound."""
        return find(self._records, principal, reference, "read")

    def list(self, principal: Principal, query: Query) -> Page:
        """Public assets that are ready, when asked for them; otherwise one's own."""
        if not query.is_public:
            query = replace(query, tenant_id=principal.tenant_id, is_public=None)
        else:
            owner = COMMONS if query.owner == "octoai" else query.owner
            query = replace(query, owner=owner, status="ready")
        return self._records.list(query)

    def delete(self, principal: Principal, reference: str) -> Asset:
        """Unusable at once by anybody; the name is free again. Raises AssetNotFound."""
        asset = find(self._records, principal, reference, "delete")
        changed = self._records.update(
            asset.id, {"status": "deleted", "deleted_at_s": self._now()}, expect=(asset.status,)
        )
        if changed is None:
            raise AssetNotFound(reference)
        self._store.delete(upload_key(asset.id))
        return changed

    def update(self, principal: Principal, reference: str, change: Change) -> Asset:
        """What an owner may change of an asset: what people read, never what it is.

        Raises:
            AssetNotFound, InvalidAsset, NameTaken.
        """
        asset = find(self._records, principal, reference, "update")
        changes: dict[str, Any] = {}
        if change.name is not None:
            self._check_name(change.name)
            changes["name"] = change.name
        if change.description is not None:
            changes["description"] = change.description
        given = {"trigger_words": change.trigger_words, "tags": change.tags}
        data = {name: list(words) for name, words in given.items() if words is not None}
        if data:
            changes["data"] = {**asset.data, **data}
        if not changes:
            return asset
        changed = self._records.update(asset.id, changes, expect=(asset.status,))
        if changed is None:  # deleted or finished in between
            return self.update(principal, reference, change)
        return changed

    def restore(self, principal: Principal, asset_id: str) -> Asset:
        """A deleted asset as it was, for KEPT_DELETED_S after it was deleted.

        Raises:
            AssetNotFound: unknown, another's, not deleted, or deleted for too long.
            NameTaken: another asset has its name by now; rename that one first.
        """
        require(principal, "restore")
        asset = self._records.get(asset_id)
        if asset is None or not may(principal, "restore", asset) or not asset.parts:
            raise AssetNotFound(asset_id)
        if self._now() - (asset.deleted_at_s or 0.0) > KEPT_DELETED_S:
            raise AssetNotFound(asset_id)
        changes = {"status": "ready", "deleted_at_s": None}
        changed = self._records.update(asset_id, changes, expect=("deleted",))
        if changed is None:
            raise AssetNotFound(asset_id)
        return changed

    def resolve(self, principal: Principal, wanted: Wanted) -> Resolved:
        return resolve(self._records, principal, wanted)

    def stale_uploads(self, older_than_s: float) -> Sequence[Asset]:
        """Uploads whose ingest seems to have died half way; each is returned once in a while,
        to whoever asks first."""
        stale = self._records.stale_uploads(self._now() - older_than_s)
        touched = (self._records.update(a.id, {}, expect=("uploaded",)) for a in stale)
        return [asset for asset in touched if asset is not None]
