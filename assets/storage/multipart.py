"""Large uploads in parts: each can be sent again, and the whole gone on with later.

On S3 these are its own multipart uploads, and clients talk to the store. Any other store gets
the same contract from parts that lie as objects of their own until they are put together.
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

#: S3 takes 5 MiB at least, but for the last, and 10,000 parts at most.
LEAST_PART_BYTES = 5 << 20
PART_BYTES = 64 << 20
MOST_PART_BYTES = 1 << 30
_NUMBER = re.compile(r"[0-9]{5}\Z")


@dataclass(frozen=True, slots=True)
class Part:
    """Numbers count from 1. ``tag`` is the store's own name for the bytes."""

    number: int
    size_bytes: int
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Begun:
    """An upload in parts that was neither finished nor aborted."""

    key: str
    upload_id: str
    began_at_s: float


class PartStore(Protocol):
    """``key`` is where the whole will lie."""

    def begin(self, key: str) -> str:
        """The upload's id."""

    def signed_put(self, key: str, upload_id: str, number: int, expires_s: int) -> str | None:
        """A URL to which a client may PUT the part, or None when the gateway must receive it
        as the object ``part_key(...)``."""

    def parts(self, key: str, upload_id: str) -> Sequence[Part]:
        """What has arrived, by number; nothing of an upload that is not, or not any more."""

    def finish(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        """The whole appears under ``key``. Raises StoreError when a part is not there."""

    def abort(self, key: str, upload_id: str) -> None:
        """Drop what has arrived; nothing happens when there is no such upload."""

    def begun(self) -> Iterator[Begun]:
        """Every upload that is under way."""


def open_parts(store: ObjectStore) -> PartStore:
    if isinstance(store, FsspecStore) and store.is_s3:
        return S3Parts(store)
    return ObjectParts(store)


class ObjectParts:
    """Parts as objects of their own, over any store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def begin(self, key: str) -> str:
        return secrets.token_hex(16)

    def signed_put(self, key: str, upload_id: str, number: int, expires_s: int) -> str | None:
        return None

    def parts(self, key: str, upload_id: str) -> Sequence[Part]:
        found = []
        for stored in self._store.list(parts_prefix(key, upload_id)):
            number = stored.key.rpartition("/")[2]
            if _NUMBER.match(number):  # and not one that is still being written
                found.append(Part(int(number), stored.size_bytes))
        return sorted(found, key=lambda part: part.number)

    def finish(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        with self._store.write(key) as whole:
            for part in parts:
                with self._store.open(part_key(key, upload_id, part.number)) as source:
                    shutil.copyfileobj(source, whole, CHUNK_BYTES)
        self.abort(key, upload_id)

    def abort(self, key: str, upload_id: str) -> None:
        for stored in list(self._store.list(parts_prefix(key, upload_id))):
            self._store.delete(stored.key)

    def begun(self) -> Iterator[Begun]:
        seen: dict[tuple[str, str], float] = {}
        for stored in self._store.list(PARTS):
            key, upload_id, _ = stored.key.removeprefix(PARTS).rsplit("/", 2)
            newest = seen.get((key, upload_id), 0.0)
            seen[key, upload_id] = max(newest, stored.changed_at_s)
        return (Begun(key, upload_id, at_s) for (key, upload_id), at_s in seen.items())


class S3Parts:
    def __init__(self, store: FsspecStore) -> None:
        self._store = store
        self._fs: Any = store.filesystem

    def _place(self, key: str) -> dict[str, str]:
        bucket, name, _ = self._fs.split_path(self._store.path(key))
        return {"Bucket": bucket, "Key": name}

    def _call(self, method: str, key: str, **options: Any) -> Any:
        try:
            return self._fs.call_s3(method, **self._place(key), **options)
        except FileNotFoundError:
            raise
        except Exception as error:
            if _is_missing(error):
                raise FileNotFoundError(key) from None
            raise StoreError(f"the store refused {method}: {error}") from error

    def begin(self, key: str) -> str:
        return str(self._call("create_multipart_upload", key)["UploadId"])

    def signed_put(self, key: str, upload_id: str, number: int, expires_s: int) -> str | None:
        fields = {**self._place(key), "UploadId": upload_id, "PartNumber": number}
        return str(
            sync(
                self._fs.loop, self._fs.s3.generate_presigned_url, "upload_part", Params=fields,
                ExpiresIn=expires_s,
            )
        )  # fmt: skip

    def parts(self, key: str, upload_id: str) -> Sequence[Part]:
        found: list[Part] = []
        after = 0
        while True:
            try:
                page = self._call("list_parts", key, UploadId=upload_id, PartNumberMarker=after)
            except FileNotFoundError:
                return found
            found += [
                Part(int(part["PartNumber"]), int(part["Size"]), part["ETag"])
                for part in page.get("Parts", ())
            ]
            if not page.get("IsTruncated"):
                return found
            after = page["NextPartNumberMarker"]

    def finish(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        listed = [{"PartNumber": part.number, "ETag": part.tag} for part in parts]
        try:
            self._call(
                "complete_multipart_upload", key, UploadId=upload_id,
                MultipartUpload={"Parts": listed},
            )  # fmt: skip
        except FileNotFoundError:
            raise StoreError("this upload is not under way any more") from None
        self._fs.invalidate_cache()

    def abort(self, key: str, upload_id: str) -> None:
        try:
            self._call("abort_multipart_upload", key, UploadId=upload_id)
        except FileNotFoundError:
            return

    def begun(self) -> Iterator[Begun]:
        place = self._place(UPLOADS + "x")
        prefix = place["Key"].removesuffix("x")  # what else is written to the store is others'
        marker: dict[str, str] = {}
        while True:
            try:
                page = self._fs.call_s3(
                    "list_multipart_uploads", Bucket=place["Bucket"], Prefix=prefix, **marker
                )
            except FileNotFoundError:  # as some servers say that there is none
                return
            for upload in page.get("Uploads") or ():
                key = UPLOADS + upload["Key"].removeprefix(prefix)
                yield Begun(key, upload["UploadId"], upload["Initiated"].timestamp())
            if not page.get("IsTruncated"):
                return
            marker = {
                "KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"],
            }  # fmt: skip


def _is_missing(error: Exception) -> bool:
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") in ("NoSuchUpload", "NoSuchKey", "404")
