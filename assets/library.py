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


@dataclass(frozen=True, slots=True)
class NewAsset:
    """What a client says of an asset before it sends the bytes."""

    name: str
    kind: str
    description: str = ""
    is_public: bool = False
    data: Mapping[str, Any] | None = None


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

    def create(self, principal: Principal, new: NewAsset) -> Asset:
        """Raises InvalidAsset, NameTaken."""
        if not _NAME.match(new.name):
            raise InvalidAsset(
                "name", "a name is 1 to 128 letters, digits, '-', '_' or '.', and begins with one"
            )
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
        asset = find(self._records, principal, reference, "delete")
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

    def resolve(self, principal: Principal, wanted: Wanted) -> Resolved:
        return resolve(self._records, principal, wanted)

    def stale_uploads(self, older_than_s: float) -> Sequence[Asset]:
        """Uploads whose ingest seems to have died half way; each is returned once in a while,
        to whoever asks first."""
        stale = self._records.stale_uploads(self._now() - older_than_s)
        touched = (self._records.update(a.id, {}, expect=("uploaded",)) for a in stale)
        return [asset for asset in touched if asset is not None]
