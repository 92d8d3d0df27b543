"""Multipart uploads: parts can be sent in any order and again, and an upload can be resumed.

On S3 they are S3's, sent directly; elsewhere each part is an object.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fsspec.asyn import sync

from assets.errors import StoreError
from assets.storage.object_paths import PARTS, UPLOADS, part_key, parts_prefix
from assets.storage.object_store import CHUNK_BYTES, FsspecStore, ObjectStore

#: S3: at least 5 MiB except the last; at most 10,000 parts.
MIN_PART_BYTES = 5 << 20
PART_BYTES = 64 << 20
MAX_PART_BYTES = 1 << 30
_NUMBER = re.compile(r"[0-9]{5}\Z")


@dataclass(frozen=True, slots=True)
class Part:
    """An arrived part. Numbers count from 1; ``tag`` is S3's ETag."""

    number: int
    size_bytes: int
    tag: str = ""


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A multipart upload in progress."""

    key: str
    upload_id: str
    began_at_s: float


class PartStore(Protocol):
    """Multipart uploads; ``key`` is the finished object's."""

    def begin(self, key: str) -> str:
        """Return a new upload's id."""

    def signed_put(self, key: str, upload_id: str, number: int, expires_s: int) -> str | None:
        """Return a URL to PUT the part to; None when the gateway must store it at
        ``part_key(...)``."""

    def parts(self, key: str, upload_id: str) -> Sequence[Part]:
        """Return arrived parts by number; none without such an upload."""

    def finish(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        """Assemble the object. Raises StoreError: a part is missing."""

    def abort(self, key: str, upload_id: str) -> None:
        """Delete the parts, if any."""

    def begun(self) -> Iterator[OpenUpload]: ...


def open_parts(store: ObjectStore) -> PartStore:
    if isinstance(store, FsspecStore) and store.is_s3:
        return S3Parts(store)
    return ObjectParts(store)


class ObjectParts:
    """A :class:`PartStore` over any store: each part is an object."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def begin(self, key: str) -> str:
        return secrets.token_hex(16)

    def signed_put(self, key: str, upload_id: str, number: int, expires_s: int) -> str | None:
        return None

    def parts(self, key: str, upload_id: str) -> Sequence[Part]:
        arrived = []
        for stored in self._store.list(parts_prefix(key, upload_id)):
            number = stored.key.rpartition("/")[2]
            if _NUMBER.match(number):  # not a temporary file
                arrived.append(Part(int(number), stored.size_bytes))
        return sorted(arrived, key=lambda part: part.number)

    def finish(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        with self._store.write(key) as whole:
            for part in parts:
                with self._store.open(part_key(key, upload_id, part.number)) as source:
                    shutil.copyfileobj(source, whole, CHUNK_BYTES)
        self.abort(key, upload_id)

    def abort(self, key: str, upload_id: str) -> None:
        for stored in list(self._store.list(parts_prefix(key, upload_id))):
            self._store.delete(stored.key)

    def begun(self) -> Iterator[OpenUpload]:
        newest: dict[tuple[str, str], float] = {}
        for stored in self._store.list(PARTS):
            key, upload_id, _ = stored.key.removeprefix(PARTS).rsplit("/", 2)
            changed_at_s = newest.get((key, upload_id), 0.0)
            newest[key, upload_id] = max(changed_at_s, stored.changed_at_s)
        return (OpenUpload(key, upload_id, at_s) for (key, upload_id), at_s in newest.items())


class S3Parts:
    """A :class:`PartStore` over S3's multipart uploads."""

    def __init__(self, store: FsspecStore) -> None:
        self._store = store
        self._fs: Any = store.filesystem

    def _location(self, key: str) -> dict[str, str]:
        bucket, name, _ = self._fs.split_path(self._store.path(key))
        return {"Bucket": bucket, "Key": name}

    def _call(self, method: str, key: str, **options: Any) -> Any:
        try:
            return self._fs.call_s3(method, **self._location(key), **options)
        except FileNotFoundError:
            raise
        except Exception as error:
            if _is_missing(error):
                raise FileNotFoundError(key) from None
            raise StoreError(f"the object store refused {method}: {error}") from error

    def begin(self, key: str) -> str:
        return str(self._call("create_multipart_upload", key)["UploadId"])

    def signed_put(self, key: str, upload_id: str, number: int, expires_s: int) -> str | None:
        fields = {**self._location(key), "UploadId": upload_id, "PartNumber": number}
        return str(
            sync(
                self._fs.loop, self._fs.s3.generate_presigned_url, "upload_part", Params=fields,
                ExpiresIn=expires_s,
            )
        )  # fmt: skip

    def parts(self, key: str, upload_id: str) -> Sequence[Part]:
        arrived: list[Part] = []
        after = 0
        while True:
            try:
                page = self._call("list_parts", key, UploadId=upload_id, PartNumberMarker=after)
            except FileNotFoundError:
                return arrived
            arrived += [
                Part(int(part["PartNumber"]), int(part["Size"]), part["ETag"])
                for part in page.get("Parts", ())
            ]
            if not page.get("IsTruncated"):
                return arrived
            after = page["NextPartNumberMarker"]

    def finish(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        listed = [{"PartNumber": part.number, "ETag": part.tag} for part in parts]
        try:
            self._call(
                "complete_multipart_upload", key, UploadId=upload_id,
                MultipartUpload={"Parts": listed},
            )  # fmt: skip
        except FileNotFoundError:
            raise StoreError(
                f"the store has no multipart upload {upload_id}; start again"
            ) from None
        self._fs.invalidate_cache()

    def abort(self, key: str, upload_id: str) -> None:
        try:
            self._call("abort_multipart_upload", key, UploadId=upload_id)
        except FileNotFoundError:
            return

    def begun(self) -> Iterator[OpenUpload]:
        location = self._location(UPLOADS + "x")
        prefix = location["Key"].removesuffix("x")  # uploads outside it are not ours
        marker: dict[str, str] = {}
        while True:
            try:
                page = self._fs.call_s3(
                    "list_multipart_uploads", Bucket=location["Bucket"], Prefix=prefix, **marker
                )
            except FileNotFoundError:  # some servers answer 404 for none
                return
            for upload in page.get("Uploads") or ():
                key = UPLOADS + upload["Key"].removeprefix(prefix)
                yield OpenUpload(key, upload["UploadId"], upload["Initiated"].timestamp())
            if not page.get("IsTruncated"):
                return
            marker = {
                "KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"],
            }  # fmt: skip


def _is_missing(error: Exception) -> bool:
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") in ("NoSuchUpload", "NoSuchKey", "404")
