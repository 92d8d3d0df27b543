"""The object store: bytes by key, over fsspec (``file://`` or ``s3://``).

Writes are atomic: files are renamed, S3 shows complete uploads only.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import fsspec

from assets.errors import StoreError, StoreUnavailable

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A listed object; ``changed_at_s`` is by the store's clock."""

    key: str
    size_bytes: int
    changed_at_s: float


class ObjectStore(Protocol):
    """Bytes by key. Keys are relative POSIX paths, never from a user."""

    def write(self, key: str) -> Any:
        """Yield a binary writer; the object appears only after success."""

    def open(self, key: str) -> BinaryIO:
        """Open for reading. Raises StoreError: no such key."""

    def read_range(self, key: str, start: int, stop: int, timeout_s: float) -> bytes:
        """Return the bytes [start, stop); fewer at the end or when cut short.

        Raises:
            StoreUnavailable: the read failed or timed out.
            StoreError: no such key.
        """

    def size(self, key: str) -> int | None:
        """Return the size in bytes; None: no such key."""

    def delete(self, key: str) -> None:
        """Delete the object, if any."""

    def copy(self, source: str, target: str) -> None:
        """Copy an object. Raises StoreError: no ``source``."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Iterate under ``prefix``, which ends with a slash; directories include temporary files of
        unfinished writes."""

    def signed_put(self, key: str, expires_s: int) -> str | None:
        """Return a URL to PUT to; None when the gateway must receive the object."""

    def signed_get(self, key: str, expires_s: int) -> str | None:
        """Return a URL to GET from; None when the gateway must send the object."""


class FsspecStore:
    """An :class:`ObjectStore` on the fsspec filesystem of ``url``."""

    def __init__(self, url: str, **options: Any) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url, **options)
        self.is_s3 = "s3" in _protocols(self._fs)
        self._is_local = "file" in _protocols(self._fs)
        if self._is_local:
            os.makedirs(self._root, exist_ok=True)

    @property
    def filesystem(self) -> Any:
        """For operations of one kind of store."""
        return self._fs

    def path(self, key: str) -> str:
        """The path in the filesystem. Raises StoreError: absolute, or with ``..``."""
        if key.startswith("/") or ".." in key.split("/"):
            raise StoreError(f"{key!r} is not a key: keys are relative paths without '..'")
        return f"{self._root}/{key}"

    @contextmanager
    def write(self, key: str) -> Iterator[BinaryIO]:
        path = self.path(key)
        if self._is_local:
            with _atomic_write(path) as file:
                yield file
            return
        file = self._fs.open(path, "wb", block_size=16 << 20)
        try:
            yield cast(BinaryIO, file)
        except BaseException:
            file.discard()
            file.closed = True
            raise
        try:
            file.close()
        except Exception as error:
            raise StoreError(f"{key} could not be written: {error}") from error

    def open(self, key: str) -> BinaryIO:
        try:
            if self._is_local:
                return cast(BinaryIO, open(self.path(key), "rb", buffering=0))
            return cast(BinaryIO, self._fs.open(self.path(key), "rb", block_size=8 << 20))
        except FileNotFoundError:
            raise StoreError(f"the object store holds no {key!r}") from None

    def read_range(self, key: str, start: int, stop: int, timeout_s: float) -> bytes:
        path = self.path(key)
        try:
            if self._is_local:
                with open(path, "rb", buffering=0) as file:
                    return os.pread(file.fileno(), stop - start, start)
            return bytes(self._fs.cat_file(path, start=start, end=stop, timeout=timeout_s))
        except FileNotFoundError:
            raise StoreError(f"the object store holds no {key!r}") from None
        except Exception as error:  # each client has its own types
            raise StoreUnavailable(f"{key}: {type(error).__name__}: {error}") from error

    def size(self, key: str) -> int | None:
        try:
            self._fs.invalidate_cache()
            return int(self._fs.size(self.path(key)))
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        try:
            self._fs.rm_file(self.path(key))
        except FileNotFoundError:
            return

    def copy(self, source: str, target: str) -> None:
        if self._is_local:
            with self.open(source) as reader, self.write(target) as writer:
                shutil.copyfileobj(reader, writer, CHUNK_BYTES)
            return
        try:
            self._fs.cp_file(self.path(source), self.path(target))
        except FileNotFoundError:
            raise StoreError(f"the object store holds no {source!r}") from None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self._fs.invalidate_cache()
        infos = self._fs.find(self.path(prefix).rstrip("/"), detail=True)
        for path, info in infos.items():
            changed = info.get("mtime") or info["LastModified"]
            changed_at_s = changed if isinstance(changed, int | float) else changed.timestamp()
            key = path.removeprefix(self._root).lstrip("/")
            yield StoredObject(key, int(info["size"]), changed_at_s)

    def signed_put(self, key: str, expires_s: int) -> str | None:
        if self._is_local:
            return None
        return str(self._fs.url(self.path(key), expires=expires_s, client_method="put_object"))

    def signed_get(self, key: str, expires_s: int) -> str | None:
        if self._is_local:
            return None
        return str(self._fs.url(self.path(key), expires=expires_s))


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


@contextmanager
def _atomic_write(path: str) -> Iterator[BinaryIO]:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class HashingWriter:
    """Counts and hashes (sha256) the bytes it passes on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def put_file(store: ObjectStore, key: str, path: Path) -> None:
    with open(path, "rb") as source, store.write(key) as target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def put_bytes(store: ObjectStore, key: str, data: bytes) -> None:
    with store.write(key) as target:
        target.write(data)


def read_bytes(store: ObjectStore, key: str) -> bytes:
    """Return a whole small object."""
    with store.open(key) as source:
        return source.read()
