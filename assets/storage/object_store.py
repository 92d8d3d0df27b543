"""The object store: bytes by key, over fsspec (``file://`` or ``s3://``).

A key appears whole or not at all: a directory store writes to a temporary name and
renames, S3 shows an object only once its upload is complete.
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

from assets.errors import StoreBroke, StoreError

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """An object of the store. ``changed_at_s`` is by the store's own clock."""

    key: str
    size_bytes: int
    changed_at_s: float


class ObjectStore(Protocol):
    """Keys are relative POSIX paths made by the platform, never by a user."""

    def write(self, key: str) -> Any:
        """A context manager giving a binary writer; the key exists after a clean exit only."""

    def open(self, key: str) -> BinaryIO:
        """A binary reader. Raises StoreError when the key does not exist."""

    def read_range(self, key: str, start: int, stop: int, timeout_s: float) -> bytes:
        """The bytes from ``start`` to before ``stop``, or fewer when it was cut short.

        Raises:
            StoreBroke: it failed, or took longer. StoreError: the key does not exist.
        """

    def size(self, key: str) -> int | None:
        """Bytes under ``key``, or None when there is nothing."""

    def delete(self, key: str) -> None:
        """Remove ``key``; nothing happens when it does not exist."""

    def copy(self, source: str, target: str) -> None:
        """The same bytes under another key; raises StoreError when there are none."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """Everything whose key begins with ``prefix``, which ends with a slash; what is still
        being written to a directory store too, under a name of its own."""

    def signed_put(self, key: str, expires_s: int) -> str | None:
        """A URL to which a client may PUT directly, or None when the gateway must receive."""

    def signed_get(self, key: str, expires_s: int) -> str | None:
        """A URL from which a client may GET directly, or None when the gateway must send."""


class FsspecStore:
    """An :class:`ObjectStore` on whatever filesystem fsspec finds under ``url``."""

    def __init__(self, url: str, **options: Any) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url, **options)
        self.is_s3 = "s3" in _protocols(self._fs)
        self._is_local = "file" in _protocols(self._fs)
        if self._is_local:
            os.makedirs(self._root, exist_ok=True)

    @property
    def filesystem(self) -> Any:
        """For what only one kind of store can do."""
        return self._fs

    def path(self, key: str) -> str:
        """Where ``key`` lies in the filesystem. Raises StoreError when it is none of ours."""
        if key.startswith("/") or ".." in key.split("/"):
            raise StoreError(f"not a key: {key!r}")
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
            raise StoreError(f"could not write {key}: {error}") from error

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
        except Exception as error:  # whatever the client of a store may raise
            raise StoreBroke(f"{key}: {type(error).__name__}: {error}") from error

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
            with self.open(source) as given, self.write(target) as taken:
                shutil.copyfileobj(given, taken, CHUNK_BYTES)
            return
        try:
            self._fs.cp_file(self.path(source), self.path(target))
        except FileNotFoundError:
            raise StoreError(f"the object store holds no {source!r}") from None

    def list(self, prefix: str) -> Iterator[Stored]:
        self._fs.invalidate_cache()
        found = self._fs.find(self.path(prefix).rstrip("/"), detail=True)
        for path, info in found.items():
            changed = info.get("mtime") or info["LastModified"]
            changed_at_s = changed if isinstance(changed, int | float) else changed.timestamp()
            key = path.removeprefix(self._root).lstrip("/")
            yield Stored(key, int(info["size"]), changed_at_s)

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


class Digesting:
    """Counts and hashes what is written through it."""

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
    """Copy a local file into the store."""
    with open(path, "rb") as source, store.write(key) as target:
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def put_bytes(store: ObjectStore, key: str, data: bytes) -> None:
    with store.write(key) as target:
        target.write(data)


def read_bytes(store: ObjectStore, key: str) -> bytes:
    """The whole object; for small ones (manifests, pictures)."""
    with store.open(key) as source:
        return source.read()
