"""How bytes come into the library: create, transfer, complete; or abort.

Nothing here loads a tensor: a gateway imports it without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from assets.access import Verb, may, require
from assets.asset import ASSET_KINDS, Asset
from assets.errors import (
    AssetNotFound,
    FetchFailed,
    InvalidAsset,
    NameTaken,
    QuotaExceeded,
    TooLarge,
)
from assets.failpoint import reach
from assets.ids import new_asset_id
from assets.library.purge import Purge
from assets.library.records import AssetRecords
from assets.library.references import BlobRecords
from assets.library.resolve import find
from assets.library.validation import check_expiry, check_name, checked_visibility, normal_name
from assets.principal import Principal
from assets.remote.huggingface import check_repository, download_url
from assets.storage.multipart import LEAST_PART_BYTES, MOST_PART_BYTES, PART_BYTES, Part, PartStore
from assets.storage.object_paths import PARTS, UPLOADS, upload_key
from assets.storage.object_store import ObjectStore

MAX_UPLOAD_BYTES = 16 << 30
#: Of a tenant, by its id.
Quota = Callable[[str], int | None]


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


class Uploads:
    """Every method asks ``may()`` itself; none trusts its caller to have asked."""

    def __init__(
        self,
        records: AssetRecords,
        blobs: BlobRecords,
        store: ObjectStore,
        parts: PartStore,
        now: Callable[[], float],
        quota: Quota,
    ) -> None:
        """``quota``: a tenant's storage limit in bytes, None for no limit."""
        self._records = records
        self._blobs = blobs
        self._store = store
        self._parts = parts
        self._now = now
        self._quota = quota
        self._purge = Purge(records, blobs, store)

    def _find(self, principal: Principal, reference: str, verb: Verb) -> Asset:
        return find(self._records, principal, reference, verb, self._now())

    def create(self, principal: Principal, new: NewAsset) -> Asset:
        """Raises Forbidden, InvalidAsset, NameTaken, QuotaExceeded."""
        require(principal, "create")
        new = replace(new, name=normal_name(new.name))
        check_name(new.name)
        if new.kind not in ASSET_KINDS:
            raise InvalidAsset(
                "asset_type", f"{new.kind!r} is not supported; accepted: {', '.join(ASSET_KINDS)}"
            )
        _check_word(new)
        visibility = checked_visibility(principal, new.visibility, new.shared_with)
        check_expiry(new.expires_at_s, self._now())
        source = _checked_source(new)
        room = self.room(principal)
        if new.size_bytes is not None:
            _check_parts(new, room)
        known = self._records.find(principal.tenant_id, new.name) if new.new_version else None
        if known is not None and not may(principal, "update", known):
            raise NameTaken(new.name)
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
            size_bytes=new.size_bytes or 0,
            status="uploaded" if source else "ready_to_upload",
            status_details="waiting to be fetched" if source else "",
            data={**(new.data or {}), **source, "max_bytes": room},
        )
        added = self._records.add(asset, new_version=new.new_version, most=principal.plan.assets)
        reach("upload.created")
        if new.size_bytes is None:
            return added
        try:
            self.make_room(principal.tenant_id, principal.plan.storage_bytes)
        except QuotaExceeded:  # another upload began beside it
            self._records.update(added.id, {"status": "deleted", "deleted_at_s": self._now()})
            self._records.purge(added.id)
            raise
        upload = {
            "id": self._parts.begin(upload_key(added.id)),
            "size_bytes": new.size_bytes,
            "part_bytes": new.part_bytes,
        }
        return self._records.update(added.id, {"data": {**added.data, "upload": upload}}) or added

    def room(self, principal: Principal) -> int:
        """How many bytes an upload may have.

        Raises:
            QuotaExceeded: none.
        """
        return self._room(principal.tenant_id, principal.plan.storage_bytes)

    def _room(self, tenant_id: str, limit: int | None, held_bytes: int = 0) -> int:
        """``held_bytes`` of what is stored are the upload's own."""
        if limit is None:
            return MAX_UPLOAD_BYTES
        room = limit - self._blobs.stored_bytes(tenant_id, restorable=False) + held_bytes
        if room <= 0:
            raise QuotaExceeded("bytes of storage", limit)
        return min(room, MAX_UPLOAD_BYTES)

    def make_room(self, tenant_id: str, limit: int | None) -> None:
        """Deleted assets give way to what is stored by now, the oldest first.

        Raises:
            QuotaExceeded: without any of them it is still too much.
        """
        if limit is None:
            return
        deleted = iter(self._records.restorable(tenant_id))
        while self._blobs.stored_bytes(tenant_id) > limit:
            asset = next(deleted, None)
            if asset is None:
                raise QuotaExceeded("bytes of storage", limit)
            self._purge(asset)

    def state(self, principal: Principal, reference: str) -> Upload:
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
        gone = {"status": "deleted", "deleted_at_s": self._now()}
        changed = self._records.update(asset.id, gone, expect=("ready_to_upload",))
        if changed is None:
            raise AssetNotFound(reference)
        self.discard(asset)
        self._records.purge(asset.id)
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
            # One at a time: each would write the whole file.
            mine = self._records.update(
                asset.id, {"status": "uploading"}, expect=("ready_to_upload",)
            )
            if mine is None:
                raise InvalidAsset("asset_id", "its parts are being put together already")
            try:
                self._put_together(asset)
            finally:
                self._records.update(asset.id, {"status": "ready_to_upload"}, expect=("uploading",))
        size = self._store.size(upload_key(asset.id))
        if size is None:
            raise InvalidAsset(
                "asset_id", "nothing was uploaded yet; PUT the file to put_url first"
            )
        limit = principal.plan.storage_bytes
        if size > self._room(principal.tenant_id, limit, asset.size_bytes):
            self._store.delete(upload_key(asset.id))
            if principal.plan.storage_bytes is not None:
                raise QuotaExceeded("bytes of storage", principal.plan.storage_bytes)
            raise InvalidAsset("asset_id", f"{size} bytes; at most {MAX_UPLOAD_BYTES} are accepted")
        changed = self._records.update(
            asset.id, {"status": "uploaded", "size_bytes": size}, expect=("ready_to_upload",)
        )
        reach("upload.completed")
        return changed or self._find(principal, asset.id, "read")

    def begin(self, key: str, declared_bytes: int | None) -> int:
        """An upload, or a part of one, begins to arrive under this key: how many bytes it may
        have. So many as are declared, or else may come, count as the tenant's from now on.

        Raises:
            AssetNotFound: nothing is awaited there, or not any more.
            TooLarge, QuotaExceeded.
        """
        asset = self._awaiting(key)
        begun = asset.data.get("upload")
        if begun is not None:  # as many as were announced count already
            return _checked_size(declared_bytes, self._part_bytes(asset, key))
        limit = self._quota(asset.tenant_id)
        most = self._room(asset.tenant_id, limit, asset.size_bytes)
        most = min(most, int(asset.data.get("max_bytes", MAX_UPLOAD_BYTES)))
        _checked_size(declared_bytes, most)
        size = most if declared_bytes is None else declared_bytes
        self._hold(asset, size)
        try:
            self.make_room(asset.tenant_id, limit)
        except QuotaExceeded:  # others have begun beside it
            self._hold(asset, 0)
            raise
        return size

    def ended(self, key: str, received_bytes: int) -> None:
        """What began to arrive has ended, with so many bytes or none."""
        asset = self._records.get(_asset_id(key))
        if asset is not None and "upload" not in asset.data:
            self._hold(asset, received_bytes)

    def _hold(self, asset: Asset, size_bytes: int) -> None:
        self._records.update(asset.id, {"size_bytes": size_bytes}, expect=("ready_to_upload",))

    def _awaiting(self, key: str) -> Asset:
        asset = self._records.get(_asset_id(key))
        if asset is None or asset.status != "ready_to_upload":
            raise AssetNotFound(key)
        return asset

    @staticmethod
    def _part_bytes(asset: Asset, key: str) -> int:
        """Raises AssetNotFound."""
        begun = asset.data["upload"]
        upload = Upload(asset, begun["id"], begun["size_bytes"], begun["part_bytes"], ())
        number = key.rpartition("/")[2]
        if not (number.isdigit() and 1 <= int(number) <= upload.part_count):
            raise AssetNotFound(key)
        return upload.part_size(int(number))

    def discard(self, asset: Asset) -> None:
        """What has arrived of an asset that is deleted."""
        self._store.delete(upload_key(asset.id))
        if asset.status == "ready_to_upload" and "upload" in asset.data:
            self._parts.abort(upload_key(asset.id), asset.data["upload"]["id"])


def _asset_id(key: str) -> str:
    return key.removeprefix(PARTS).removeprefix(UPLOADS).partition("/")[0]


def _checked_size(declared_bytes: int | None, most: int) -> int:
    """Return ``most``, the number of bytes to accept. Raises TooLarge: more are declared."""
    if declared_bytes is not None and declared_bytes > most:
        raise TooLarge(f"{declared_bytes} bytes; at most {most} are accepted")
    return most


def _check_parts(new: NewAsset, room: int) -> None:
    assert new.size_bytes is not None
    if not 0 < new.size_bytes <= room:
        raise InvalidAsset("size_bytes", f"{new.size_bytes} bytes; at most {room} are accepted")
    if not LEAST_PART_BYTES <= new.part_bytes <= MOST_PART_BYTES:
        limits = f"{LEAST_PART_BYTES} to {MOST_PART_BYTES}"
        raise InvalidAsset("part_bytes", f"a part has {limits} bytes")


def _check_word(new: NewAsset) -> None:
    """Raises InvalidAsset: something is said that the kind has not."""
    data = new.data or {}
    for field, kind in (("prediction_type", "checkpoint"), ("adapter_config", "lora")):
        if data.get(field) is not None and new.kind != kind:
            raise InvalidAsset(field, f"a {kind} has it; this is a {new.kind}")


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
    if not new.url:
        return {}
    try:
        return {"url": download_url(new.url)}
    except FetchFailed as error:
        raise InvalidAsset("url", str(error)) from None
