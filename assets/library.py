"""The library's use cases: create, receive, complete, list, get, change, delete, resolve.

Nothing here loads a tensor: a gateway imports it without torch. What converts
bytes is in workshop.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from assets.access import may, require
from assets.asset import ASSET_KINDS, COMMONS, VISIBILITIES, Asset, Visibility
from assets.blobs import BlobRecords
from assets.errors import (
    AssetNotFound,
    AssetNotReady,
    FetchFailed,
    InvalidAsset,
    NameTaken,
    QuotaExceeded,
)
from assets.failpoint import reach
from assets.hub import check_repository
from assets.ids import new_asset_id
from assets.keys import BLOBS, PREVIEWS, blob_of, upload_key
from assets.parts import (
    LEAST_PART_BYTES,
    MOST_PART_BYTES,
    PART_BYTES,
    Part,
    PartStore,
    open_parts,
)
from assets.principal import Principal
from assets.records import AssetRecords, Page, Query
from assets.resolve import Resolved, Wanted, find, resolve
from assets.store import ObjectStore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}\Z")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
MAX_UPLOAD_BYTES = 16 << 30
MAX_SHARED_WITH = 64
#: A deleted asset can be restored for a week.
KEPT_DELETED_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class NewAsset:
    """What a client says of an asset before it sends the bytes.

    ``new_version``: the name may be taken, and this is its next version. With ``url``, or
    ``hf_repo`` as ``owner/name`` or ``owner/name:file``, the platform fetches the bytes itself.
    """

    name: str
    kind: str
    description: str = ""
    visibility: str = "private"
    shared_with: Sequence[str] = ()
    expires_at_s: float | None = None
    new_version: bool = False
    url: str | None = None
    hf_repo: str | None = None
    #: To be sent in parts: how many bytes there will be, and in parts of how many.
    size_bytes: int | None = None
    part_bytes: int = PART_BYTES
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in parts, as far as it is. All but the last part have ``part_bytes``."""

    asset: Asset
    upload_id: str
    size_bytes: int
    part_bytes: int
    arrived: Sequence[Part]

    @property
    def part_count(self) -> int:
        return -(-self.size_bytes // self.part_bytes)

    def part_size(self, number: int) -> int:
        return min(self.part_bytes, self.size_bytes - (number - 1) * self.part_bytes)

    @property
    def missing(self) -> Sequence[int]:
        """Those that are not there, or not whole."""
        whole = {p.number for p in self.arrived if p.size_bytes == self.part_size(p.number)}
        return [number for number in range(1, self.part_count + 1) if number not in whole]


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


class Library:
    """Every method asks ``may()`` itself; none trusts its caller to have asked."""

    def __init__(
        self,
        records: AssetRecords,
        blobs: BlobRecords,
        store: ObjectStore,
        parts: PartStore | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._store = store
        self._parts = parts or open_parts(store)
        self._now = now

    def _find(self, principal: Principal, reference: str, verb: Any) -> Asset:
        return find(self._records, principal, reference, verb, self._now())

    def create(self, principal: Principal, new: NewAsset) -> Asset:
        """Raises Forbidden, InvalidAsset, NameTaken, QuotaExceeded."""
        require(principal, "create")
        _check_name(new.name)
        if new.kind not in ASSET_KINDS:
            raise InvalidAsset(
                "asset_type", f"{new.kind!r} is not supported; accepted: {', '.join(ASSET_KINDS)}"
            )
        visibility = _checked_visibility(principal, new.visibility, new.shared_with)
        self._check_expiry(new.expires_at_s)
        source = _checked_source(new)
        room = self._room(principal)
        if new.size_bytes is not None:
            _check_parts(new, room)
        known = self._records.find(principal.tenant_id, new.name) if new.new_version else None
        if known is not None and known.kind != new.kind:
            raise InvalidAsset("asset_type", f"a version of a {known.kind} is a {known.kind}")
        now = self._now()
        asset = Asset(
            id=new_asset_id(now),
            tenant_id=principal.tenant_id,
            owner=principal.tenant_name,
            name=new.name,
            kind=new.kind,
            created_at_s=now,
            description=new.description,
            visibility=visibility,
            shared_with=tuple(sorted(set(new.shared_with))),
            created_by=principal.member_id,
            expires_at_s=new.expires_at_s,
            status="uploaded" if source else "ready_to_upload",
            status_details="waiting to be fetched" if source else "",
            data={**(new.data or {}), **source, "max_bytes": room},
        )
        added = self._records.add(asset, new_version=new.new_version, most=principal.plan.assets)
        reach("upload.created")
        if new.size_bytes is None:
            return added
        upload = {
            "id": self._parts.begin(upload_key(added.id)),
            "size_bytes": new.size_bytes,
            "part_bytes": new.part_bytes,
        }
        return self._records.update(added.id, {"data": {**added.data, "upload": upload}}) or added

    def _room(self, principal: Principal) -> int:
        """How many bytes an upload may have.

        Raises:
            QuotaExceeded: none.
        """
        limit = principal.plan.storage_bytes
        if limit is None:
            return MAX_UPLOAD_BYTES
        room = limit - self._blobs.stored_bytes(principal.tenant_id)
        if room <= 0:
            raise QuotaExceeded("bytes of storage", limit)
        return min(room, MAX_UPLOAD_BYTES)

    def upload(self, principal: Principal, reference: str) -> Upload:
        """How far an upload in parts is.

        Raises:
            AssetNotFound: also for an asset that is not, or not any more, sent in parts.
        """
        asset = self._find(principal, reference, "update")
        begun = asset.data.get("upload")
        if asset.status != "ready_to_upload" or begun is None:
            raise AssetNotFound(reference)
        arrived = self._parts.parts(upload_key(asset.id), begun["id"])
        return Upload(asset, begun["id"], begun["size_bytes"], begun["part_bytes"], arrived)

    def signed_part(self, upload: Upload, number: int, expires_s: int) -> str | None:
        """A URL of the store's own to which the part may be PUT, if it has such."""
        key = upload_key(upload.asset.id)
        return self._parts.signed_put(key, upload.upload_id, number, expires_s)

    def abort(self, principal: Principal, reference: str) -> Asset:
        """End an upload that is not complete: what has arrived is dropped, and the name free.

        Raises:
            AssetNotFound: also for an asset that is complete.
        """
        asset = self._find(principal, reference, "update")
        if asset.status != "ready_to_upload":
            raise AssetNotFound(reference)
        changed = self._delete(asset)
        if changed is None:
            raise AssetNotFound(reference)
        return changed

    def _put_together(self, asset: Asset) -> None:
        """Raises InvalidAsset when a part is missing."""
        begun = asset.data["upload"]
        key = upload_key(asset.id)
        if self._store.size(key) == begun["size_bytes"]:
            return  # by an earlier call, whose answer was lost
        arrived = self._parts.parts(key, begun["id"])
        upload = Upload(asset, begun["id"], begun["size_bytes"], begun["part_bytes"], arrived)
        if upload.missing:
            some = ", ".join(map(str, upload.missing[:10]))
            raise InvalidAsset(
                "asset_id", f"{len(upload.missing)} of {upload.part_count} parts are missing or "
                f"not whole ({some}); GET /v1/assets/{asset.id}/upload says where to send them",
            )  # fmt: skip
        self._parts.finish(key, begun["id"], arrived[: upload.part_count])

    def complete(self, principal: Principal, reference: str) -> Asset:
        """The client says that its bytes are there. Repeating it is harmless.

        Raises:
            InvalidAsset: the store holds no bytes for this asset, or too many.
            QuotaExceeded: more bytes than the tenant's plan has room for; they are dropped.
        """
        asset = self._find(principal, reference, "update")
        if asset.status != "ready_to_upload":
            return asset
        if "upload" in asset.data:
            self._put_together(asset)
        size = self._store.size(upload_key(asset.id))
        if size is None:
            raise InvalidAsset(
                "asset_id", "nothing was uploaded yet; PUT the file to put_url first"
            )
        if size > self._room(principal):
            self._store.delete(upload_key(asset.id))
            if principal.plan.storage_bytes is not None:
                raise QuotaExceeded("bytes of storage", principal.plan.storage_bytes)
            raise InvalidAsset("asset_id", f"{size} bytes; at most {MAX_UPLOAD_BYTES} are accepted")
        changed = self._records.update(
            asset.id, {"status": "uploaded", "size_bytes": size}, expect=("ready_to_upload",)
        )
        reach("upload.completed")
        return changed or self.get(principal, asset.id)

    def receivable_bytes(self, asset_id: str) -> int:
        """How many bytes may still be put for this asset; none once it is complete."""
        asset = self._records.get(asset_id)
        if asset is None or asset.status != "ready_to_upload":
            return 0
        return int(asset.data.get("max_bytes", MAX_UPLOAD_BYTES))

    def get(self, principal: Principal, reference: str) -> Asset:
        """Raises AssetNotFound."""
        return self._find(principal, reference, "read")

    def list(self, principal: Principal, query: Query) -> Page:
        """Of a query for public assets or for those shared with the tenant: those that are
        ready. Otherwise the tenant's own."""
        owner = COMMONS if query.owner == "octoai" else query.owner
        if query.visibility == "public" or query.shared_with is not None:
            return self._records.list(replace(query, owner=owner, status="ready"))
        member = None if principal.role == "owner" else principal.member_id
        return self._records.list(replace(query, tenant_id=principal.tenant_id, member_id=member))

    def delete(self, principal: Principal, reference: str) -> Asset:
        """Unusable at once by anybody; the name is free again. Raises AssetNotFound."""
        asset = self._find(principal, reference, "delete")
        changed = self._delete(asset)
        if changed is None:
            raise AssetNotFound(reference)
        return changed

    def _delete(self, asset: Asset) -> Asset | None:
        changed = self._records.update(
            asset.id, {"status": "deleted", "deleted_at_s": self._now()}, expect=(asset.status,)
        )
        if changed is not None:
            reach("delete.recorded")
            self._store.delete(upload_key(asset.id))
            if asset.status == "ready_to_upload" and "upload" in asset.data:
                self._parts.abort(upload_key(asset.id), asset.data["upload"]["id"])
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
            _check_name(change.name)
        if change.description is not None:
            changes["description"] = change.description
        given = {
            "trigger_words": change.trigger_words, "tags": change.tags, "licence": change.licence,
        }  # fmt: skip
        data = {
            name: value if isinstance(value, str) else list(value)
            for name, value in given.items()
            if value is not None
        }
        if data:
            changes["data"] = {**asset.data, **data}
        if change.visibility is not None or change.shared_with is not None:
            wanted = change.visibility or asset.visibility
            shared_with = asset.shared_with if change.shared_with is None else change.shared_with
            changes["visibility"] = _checked_visibility(principal, wanted, shared_with)
            changes["shared_with"] = tuple(sorted(set(shared_with)))
        if change.expires_at_s is not None:
            changes["expires_at_s"] = change.expires_at_s or None
            self._check_expiry(changes["expires_at_s"])
        if change.name is not None:
            renamed = self._records.rename(asset.id, change.name)
            if renamed is None:
                raise AssetNotFound(reference)
            asset = renamed
        if not changes:
            return asset
        changed = self._records.update(asset.id, changes, expect=(asset.status,))
        if changed is None:  # deleted or finished in between
            return self.update(principal, asset.id, replace(change, name=None))
        return changed

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
            self._store.delete(asset.preview)
        return changed

    def _check_expiry(self, expires_at_s: float | None) -> None:
        if expires_at_s is not None and expires_at_s <= self._now():
            raise InvalidAsset("expires_at", "it would have expired already")

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
        self._room(principal)
        changes: dict[str, Any] = {"status": "ready", "deleted_at_s": None}
        if asset.expires_at_s is not None and asset.expires_at_s <= self._now():
            changes["expires_at_s"] = None
        changed = self._records.update(asset_id, changes, expect=("deleted",))
        if changed is None:
            raise AssetNotFound(asset_id)
        return changed

    def resolve(self, principal: Principal, wanted: Wanted) -> Resolved:
        return resolve(self._records, principal, wanted, self._now())

    def used(self, resolved: Resolved) -> None:
        """A picture was drawn with these assets."""
        if resolved.asset_ids:
            self._records.used(resolved.asset_ids)

    def stored_bytes(self, principal: Principal) -> int:
        """What the tenant's live assets hold."""
        return self._blobs.stored_bytes(principal.tenant_id)

    def may_fetch(self, key: str) -> bool:
        """Whether what lies under this key of the store is still anybody's to read: a signed URL
        outlives neither a deletion nor a change of the content key."""
        if key.startswith(BLOBS):
            return bool(self._blobs.live([blob_of(key)]))
        if key.startswith(PREVIEWS):
            asset = self._records.get(key.removeprefix(PREVIEWS)[: len(new_asset_id())])
            return asset is None or not asset.is_deleted
        return True

    def dead(self, keys: Collection[str]) -> set[str]:
        """Of the content keys of canonical files, those that nobody can ask for any more."""
        return set(keys) - self._blobs.live(keys)

    def miskeyed(self) -> Sequence[Asset]:
        """Those whose content keys do not say whether they are public; to be ingested again."""
        return self._records.miskeyed()

    def stale_uploads(self, older_than_s: float) -> Sequence[Asset]:
        """Uploads whose ingest seems to have died half way; each is returned once in a while,
        to whoever asks first."""
        stale = self._records.stale("uploaded", self._now() - older_than_s)
        touched = (self._records.update(a.id, {}, expect=("uploaded",)) for a in stale)
        return [asset for asset in touched if asset is not None]


def _check_name(name: str) -> None:
    if not _NAME.match(name):
        raise InvalidAsset(
            "name", "a name is 1 to 128 letters, digits, '-', '_' or '.', and begins with one"
        )


def _check_parts(new: NewAsset, room: int) -> None:
    assert new.size_bytes is not None
    if not 0 < new.size_bytes <= room:
        raise InvalidAsset("size_bytes", f"{new.size_bytes} bytes; at most {room} are accepted")
    if not LEAST_PART_BYTES <= new.part_bytes <= MOST_PART_BYTES:
        limits = f"{LEAST_PART_BYTES} to {MOST_PART_BYTES}"
        raise InvalidAsset("part_bytes", f"a part has {limits} bytes")


def _checked_source(new: NewAsset) -> dict[str, str]:
    """Raises InvalidAsset. The guard's own rules are asked when it is fetched."""
    if new.url and new.hf_repo:
        raise InvalidAsset("url", "give url or hf_repo, not both")
    if new.hf_repo:
        try:
            check_repository(new.hf_repo)
        except FetchFailed as error:
            raise InvalidAsset("hf_repo", str(error)) from None
        return {"hf_repo": new.hf_repo}
    return {"url": new.url} if new.url else {}


def _checked_visibility(
    principal: Principal, wanted: str, shared_with: Sequence[str]
) -> Visibility:
    """Raises InvalidAsset, or Forbidden when it leaves the organisation and may not."""
    if wanted not in VISIBILITIES:
        raise InvalidAsset("visibility", f"{wanted!r} is none of {', '.join(VISIBILITIES)}")
    if wanted in ("shared", "public"):
        require(principal, "share")
    if wanted == "shared":
        if not shared_with:
            raise InvalidAsset("shared_with", "name the tenants that it is shared with")
        if len(shared_with) > MAX_SHARED_WITH or not all(map(_TENANT.match, shared_with)):
            raise InvalidAsset("shared_with", f"at most {MAX_SHARED_WITH} names of tenants")
    return next(visibility for visibility in VISIBILITIES if visibility == wanted)
