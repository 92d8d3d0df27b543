"""Uploads: create an asset, transfer its bytes, complete or abort."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from assets.access import Verb, may, require
from assets.asset import (
    ASSET_KINDS,
    INCOMPLETE,
    Asset,
    AssetChanges,
    AssetKind,
    AssetStatus,
    ImportSource,
    UploadSession,
)
from assets.errors import (
    AssetNotFound,
    FetchFailed,
    InvalidAsset,
    NameTaken,
    QuotaExceeded,
    TooLarge,
)
from assets.failpoint import reach
from assets.hints import Hints
from assets.ids import new_asset_id
from assets.kinds import KINDS, kinds_with
from assets.library.concurrent_change import change_asset
from assets.library.purge import Purge
from assets.library.records import AssetRecords
from assets.library.references import BlobRecords
from assets.library.resolve import find
from assets.library.validation import check_expiry, check_name, checked_visibility, normal_name
from assets.prediction import Prediction
from assets.principal import Principal
from assets.remote.huggingface import check_repository, download_url
from assets.storage.multipart import MAX_PART_BYTES, MIN_PART_BYTES, PART_BYTES, Part, PartStore
from assets.storage.object_paths import PARTS, UPLOADS, upload_key
from assets.storage.object_store import ObjectStore

MAX_UPLOAD_BYTES = 16 << 30
#: An assembly takes at most this and its bytes at the least speed; then a dead one is repeated.
ASSEMBLY_S, _LEAST_BYTES_S = 600.0, 4e6
#: Other changes may cross it.
UNCLAIM_ATTEMPTS = 10
#: A tenant's storage limit in bytes, by id; None: unlimited.
Quota = Callable[[str], int | None]


@dataclass(frozen=True, slots=True)
class NewAsset:
    """A client's description of an asset. ``new_version`` extends an existing name.

    The platform downloads ``url``, or ``hf_repo`` (``owner/name`` or ``owner/name:file``).
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
    #: For a multipart upload.
    size_bytes: int | None = None
    part_bytes: int = PART_BYTES
    tags: Sequence[str] = ()
    trigger_words: Sequence[str] = ()
    license: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    prediction_type: Prediction | None = None
    adapter_config: Mapping[str, object] | None = None
    sha256: str | None = None
    hints: Hints | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload and its parts so far."""

    asset: Asset
    session: UploadSession
    arrived: Sequence[Part] = ()

    @property
    def part_count(self) -> int:
        return -(-self.session.size_bytes // self.session.part_bytes)

    def part_size(self, number: int) -> int:
        part_bytes = self.session.part_bytes
        return min(part_bytes, self.session.size_bytes - (number - 1) * part_bytes)

    @property
    def missing(self) -> Sequence[int]:
        complete = {p.number for p in self.arrived if p.size_bytes == self.part_size(p.number)}
        return [number for number in range(1, self.part_count + 1) if number not in complete]


class Uploads:
    """Methods that take a principal authorize the call."""

    def __init__(
        self,
        records: AssetRecords,
        blobs: BlobRecords,
        store: ObjectStore,
        parts: PartStore,
        now: Callable[[], float],
        quota: Quota,
    ) -> None:
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
        """Begin an asset's upload or import.

        Raises:
            Forbidden, InvalidAsset, NameTaken, QuotaExceeded.
        """
        require(principal, "create")
        new = replace(new, name=normal_name(new.name))
        check_name(new.name)
        kind = _kind(new.kind)
        _check_kind_fields(new)
        visibility = checked_visibility(principal, new.visibility, new.shared_with)
        check_expiry(new.expires_at_s, self._now())
        source = _checked_source(new)
        room = self.room(principal)
        if new.size_bytes is not None:
            _check_parts(new, room)
        previous = self._records.find(principal.tenant_id, new.name) if new.new_version else None
        if previous is not None and not may(principal, "update", previous):
            raise NameTaken(new.name)
        if previous is not None and previous.kind != new.kind:
            raise InvalidAsset("asset_type", f"a version of a {previous.kind} is a {previous.kind}")
        now = self._now()
        asset = Asset(
            id=new_asset_id(now),
            tenant_id=principal.tenant_id,
            owner=principal.tenant_name,
            name=new.name,
            kind=kind,
            created_at_s=now,
            description=new.description,
            visibility=visibility,
            shared_with=tuple(sorted(set(new.shared_with))),
            created_by=principal.member_id,
            expires_at_s=new.expires_at_s,
            size_bytes=new.size_bytes or 0,
            status=_first_status(kind, source),
            status_details="waiting to be fetched" if source else "",
            tags=tuple(new.tags),
            trigger_words=tuple(new.trigger_words),
            license=new.license,
            labels=new.labels,
            prediction_type=new.prediction_type,
            adapter_config=new.adapter_config,
            expected_sha256=new.sha256,
            hints=new.hints,
            max_bytes=room,
            source=source,
        )
        added = self._records.add(asset, new_version=new.new_version, most=principal.plan.assets)
        reach("upload.created")
        if new.size_bytes is None:
            return added
        try:
            self.make_room(principal.tenant_id, principal.plan.storage_bytes)
        except QuotaExceeded:  # a concurrent upload took the room
            self._records.update(added.id, {"status": "deleted", "deleted_at_s": self._now()})
            self._records.purge(added.id)
            raise
        begun = self._parts.begin(upload_key(added.id))
        session = UploadSession(begun, new.size_bytes, new.part_bytes)
        return self._records.update(added.id, {"upload": session}) or added

    def room(self, principal: Principal) -> int:
        """Return how many bytes an upload may have.

        Raises:
            QuotaExceeded: no storage is left.
        """
        return self._room(principal.tenant_id, principal.plan.storage_bytes)

    def _room(self, tenant_id: str, limit: int | None, held_bytes: int = 0) -> int:
        """``held_bytes``: stored bytes that the upload reserves."""
        if limit is None:
            return MAX_UPLOAD_BYTES
        room = limit - self._blobs.stored_bytes(tenant_id, restorable=False) + held_bytes
        if room <= 0:
            raise QuotaExceeded("bytes of storage", limit)
        return min(room, MAX_UPLOAD_BYTES)

    def make_room(self, tenant_id: str, limit: int | None) -> None:
        """Purge deleted assets, oldest first, to get within the limit.

        Raises:
            QuotaExceeded: none is left to purge.
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
        """Return a multipart upload's state.

        Raises:
            AssetNotFound: also when no multipart upload is in progress.
        """
        asset = self._find(principal, reference, "update")
        if asset.status not in INCOMPLETE or asset.upload is None or self._is_claimed(asset):
            raise AssetNotFound(reference)
        return self._state(asset, asset.upload)

    def _state(self, asset: Asset, session: UploadSession) -> Upload:
        key = upload_key(asset.id)
        if self._store.size(key) == session.size_bytes:  # assembled; only not recorded
            whole = Upload(asset, session)
            numbers = range(1, whole.part_count + 1)
            return replace(whole, arrived=[Part(n, whole.part_size(n)) for n in numbers])
        return Upload(asset, session, self._parts.parts(key, session.id))

    def signed_part(self, upload: Upload, number: int, expires_s: int) -> str | None:
        """Return the store's signed PUT URL; None when the gateway must receive the part."""
        key = upload_key(upload.asset.id)
        return self._parts.signed_put(key, upload.session.id, number, expires_s)

    def abort(self, principal: Principal, reference: str) -> Asset:
        """Delete an incomplete upload's bytes and free its name.

        Raises:
            AssetNotFound: also when complete.
        """
        now_s = self._now()

        def delete(asset: Asset) -> Asset | None:
            if asset.status not in INCOMPLETE or self._is_claimed(asset):
                raise AssetNotFound(reference)
            changes = AssetChanges(status="deleted", deleted_at_s=now_s)
            deleted = self._records.update(asset.id, changes, revision=asset.revision)
            if deleted is not None:
                self.discard(asset)
            return deleted

        deleted = change_asset(self._records, principal, reference, "update", now_s, delete)
        self._records.purge(deleted.id)
        return deleted

    def _is_claimed(self, asset: Asset) -> bool:
        return is_claimed(asset, self._now())

    def _assemble(self, principal: Principal, asset: Asset, session: UploadSession) -> None:
        """Raises InvalidAsset: parts are missing, or another call assembles it."""
        key = upload_key(asset.id)
        if self._store.size(key) == session.size_bytes:
            return  # an earlier call did it
        upload = self._state(asset, session)
        if upload.missing:
            numbers = ", ".join(map(str, upload.missing[:10]))
            raise InvalidAsset(
                "asset_id", f"{len(upload.missing)} of {upload.part_count} parts are missing or "
                f"incomplete ({numbers}); GET /v1/assets/{asset.id}/upload returns their URLs",
            )  # fmt: skip
        now_s = self._now()
        until_s = now_s + ASSEMBLY_S + session.size_bytes / _LEAST_BYTES_S

        def claim(current: Asset) -> Asset | None:
            """Concurrent calls would each write the whole file."""
            if current.status not in INCOMPLETE or self._is_claimed(current):
                raise InvalidAsset(
                    "asset_id", "another call is completing this upload; poll the asset's status"
                )
            changes = AssetChanges(
                status="uploading", upload=replace(session, claimed_until_s=until_s)
            )
            return self._records.update(current.id, changes, revision=current.revision)

        change_asset(self._records, principal, asset.id, "update", now_s, claim)
        try:
            self._parts.finish(key, session.id, upload.arrived[: upload.part_count])
        finally:
            self._unclaim(asset.id, until_s)

    def _unclaim(self, asset_id: str, until_s: float) -> None:
        """End this call's claim; a later call may have its own."""
        for _ in range(UNCLAIM_ATTEMPTS):
            asset = self._records.get(asset_id)
            if asset is None or asset.upload is None or asset.upload.claimed_until_s != until_s:
                return
            free = AssetChanges(upload=replace(asset.upload, claimed_until_s=0.0))
            if self._records.update(asset_id, free, revision=asset.revision) is not None:
                return

    def complete(self, principal: Principal, reference: str) -> Asset:
        """Complete an upload; its ingest can start. Idempotent.

        Raises:
            InvalidAsset: bytes are missing or too many.
            QuotaExceeded: no room in the plan; the bytes are deleted.
        """
        asset = self._find(principal, reference, "update")
        if asset.status not in INCOMPLETE:
            return asset
        if asset.upload is not None:
            self._assemble(principal, asset, asset.upload)
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
            asset.id, {"status": "uploaded", "size_bytes": size}, expect=INCOMPLETE
        )
        reach("upload.completed")
        return changed or self._find(principal, asset.id, "read")

    def begin(self, key: str, declared_bytes: int | None) -> int:
        """Begin to receive an upload or part; return how many bytes to accept.

        The declared bytes, else all accepted, count as stored from now on.

        Raises:
            AssetNotFound: no upload to ``key`` is in progress.
            TooLarge, QuotaExceeded.
        """
        asset = self._open_upload(key)
        if asset.upload is not None:  # counted at creation
            return _checked_size(declared_bytes, _part_bytes(asset, asset.upload, key))
        limit = self._quota(asset.tenant_id)
        room = self._room(asset.tenant_id, limit, asset.size_bytes)
        max_bytes = min(room, asset.max_bytes or MAX_UPLOAD_BYTES)
        _checked_size(declared_bytes, max_bytes)
        size = max_bytes if declared_bytes is None else declared_bytes
        self._reserve(asset, size)
        try:
            self.make_room(asset.tenant_id, limit)
        except QuotaExceeded:  # concurrent uploads took the room
            self._reserve(asset, 0)
            raise
        return size

    def ended(self, key: str, received_bytes: int) -> None:
        """End what :meth:`begin` began: only received bytes still count."""
        asset = self._records.get(_asset_id(key))
        if asset is not None and asset.upload is None:
            self._reserve(asset, received_bytes)

    def _reserve(self, asset: Asset, size_bytes: int) -> None:
        self._records.update(asset.id, {"size_bytes": size_bytes}, expect=("ready_to_upload",))

    def _open_upload(self, key: str) -> Asset:
        asset = self._records.get(_asset_id(key))
        if asset is None or asset.status not in INCOMPLETE or self._is_claimed(asset):
            raise AssetNotFound(key)
        return asset

    def discard(self, asset: Asset) -> None:
        """Delete a deleted asset's uploaded bytes."""
        self._store.delete(upload_key(asset.id))
        if asset.status in INCOMPLETE and asset.upload is not None and not self._is_claimed(asset):
            self._parts.abort(upload_key(asset.id), asset.upload.id)


def _kind(name: str) -> AssetKind:
    for kind in ASSET_KINDS:
        if kind == name:
            return kind
    accepted = ", ".join(ASSET_KINDS)
    raise InvalidAsset("asset_type", f"{name!r} is not supported; accepted: {accepted}")


def is_claimed(asset: Asset, now_s: float) -> bool:
    """Whether a call assembles the asset's parts."""
    if asset.upload is None:
        return False
    until_s = asset.upload.claimed_until_s
    return asset.status == "uploading" if until_s is None else until_s > now_s


def _part_bytes(asset: Asset, session: UploadSession, key: str) -> int:
    """The size of the part that ``key`` names. Raises AssetNotFound: it has none."""
    upload = Upload(asset, session)
    number = key.rpartition("/")[2]
    if not (number.isdigit() and 1 <= int(number) <= upload.part_count):
        raise AssetNotFound(key)
    return upload.part_size(int(number))


def _asset_id(key: str) -> str:
    return key.removeprefix(PARTS).removeprefix(UPLOADS).partition("/")[0]


def _checked_size(declared_bytes: int | None, max_bytes: int) -> int:
    if declared_bytes is not None and declared_bytes > max_bytes:
        raise TooLarge(f"{declared_bytes} bytes; at most {max_bytes} are accepted")
    return max_bytes


def _check_parts(new: NewAsset, room: int) -> None:
    assert new.size_bytes is not None
    if not 0 < new.size_bytes <= room:
        raise InvalidAsset("size_bytes", f"{new.size_bytes} bytes; at most {room} are accepted")
    if not MIN_PART_BYTES <= new.part_bytes <= MAX_PART_BYTES:
        limits = f"{MIN_PART_BYTES} to {MAX_PART_BYTES}"
        raise InvalidAsset("part_bytes", f"{new.part_bytes} bytes; a part must have {limits}")


def _check_kind_fields(new: NewAsset) -> None:
    for name, value, kinds in (
        ("prediction_type", new.prediction_type, kinds_with(lambda t: t.has_prediction_type)),
        ("adapter_config", new.adapter_config, kinds_with(lambda t: t.has_adapter_config)),
    ):
        if value is not None and new.kind not in kinds:
            raise InvalidAsset(
                name, f"supported for a {' or '.join(kinds)} only; this is a {new.kind}"
            )
    kind = _kind(new.kind)
    if not KINDS[kind].has_file:
        if new.url or new.hf_repo or new.size_bytes is not None:
            raise InvalidAsset("url", f"a {new.kind} has no file; give its hints alone")
        check_hints(kind, new.hints)


def check_hints(kind: AssetKind, hints: Hints | None) -> None:
    """Raise InvalidAsset: a style without a template."""
    if not KINDS[kind].has_file and not (hints and (hints.prompt or hints.negative_prompt)):
        raise InvalidAsset("hints", f"a {kind} needs hints with a prompt or a negative_prompt")


def _first_status(kind: AssetKind, source: ImportSource | None) -> AssetStatus:
    if not KINDS[kind].has_file:
        return "ready"
    return "uploaded" if source else "ready_to_upload"


def _checked_source(new: NewAsset) -> ImportSource | None:
    """The import rules are checked at download."""
    if new.url and new.hf_repo:
        raise InvalidAsset("url", "give url or hf_repo, not both")
    if new.hf_repo:
        try:
            check_repository(new.hf_repo)
        except FetchFailed as error:
            raise InvalidAsset("hf_repo", str(error)) from None
        return ImportSource(hf_repo=new.hf_repo)
    if not new.url:
        return None
    try:
        return ImportSource(download_url(new.url))
    except FetchFailed as error:
        raise InvalidAsset("url", str(error)) from None
