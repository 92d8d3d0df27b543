"""Bringing a blob up: object store → disk → host, once per node, with a receipt."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol

from assets.content import Blob
from assets.keys import blob_key
from assets.store import ObjectStore
from orchestrator.errors import Corrupt, TierError
from orchestrator.file_tier import FileLease, FileTier

TierName = Literal["gpu", "host", "disk", "store"]

CHUNK_BYTES = 4 << 20


class BlobSource(Protocol):
    """The object store, as the tiers see it."""

    def open_blob(self, blob: Blob) -> BinaryIO: ...


class StoreSource:
    """The blobs of an object store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def open_blob(self, blob: Blob) -> BinaryIO:
        return self._store.open(blob_key(blob))


@dataclass(frozen=True, slots=True)
class Found:
    """A receipt's line: where a blob was when it was wanted, and what that cost."""

    key: str
    tier: TierName
    bytes_moved: int
    fetch_s: float


class Provisioner:
    """Leases a blob on the highest file tier that takes it."""

    def __init__(
        self,
        source: BlobSource,
        disk: FileTier,
        host: FileTier,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._disk = disk
        self._host = host
        self._clock = clock

    @property
    def tiers(self) -> Sequence[FileTier]:
        return (self._host, self._disk)

    def bring(self, blob: Blob) -> tuple[FileLease, Found]:
        """A lease on the blob's file, in host RAM if it fits there, else on disk.

        Raises:
            TierError: neither tier has room, or the bytes are corrupt (a rotten copy on
            disk is dropped, so that the next attempt fetches it anew).
            Whatever the source raises when it has no such blob.
        """
        started = self._clock()
        lease = self._host.lease(blob)
        if lease is not None:
            return lease, Found(blob.key, "host", 0, self._clock() - started)
        on_disk, fetched = self._disk.admit(blob, lambda file: self._download(blob, file))
        tier: TierName = "store" if fetched else "disk"
        moved = blob.size_bytes if fetched else 0
        try:
            lease, copied = self._host.admit(blob, lambda file: _copy(on_disk, file))
        except Corrupt:
            on_disk.release()
            self._disk.drop(blob.key)
            raise
        except TierError:  # no room in memory: the file on disk serves as well, only slower
            return on_disk, Found(blob.key, tier, moved, self._clock() - started)
        except BaseException:
            on_disk.release()
            raise
        on_disk.release()
        moved += blob.size_bytes if copied else 0
        return lease, Found(blob.key, tier, moved, self._clock() - started)

    def forget(self, key: str) -> bool:
        """Remove a blob that nobody may ask for any more; whether it is gone from both tiers."""
        gone = True
        for tier in self.tiers:
            tier.unpin(key)
            gone &= key not in tier.resident() or tier.drop(key)
        return gone

    def _download(self, blob: Blob, file: BinaryIO) -> None:
        with self._source.open_blob(blob) as source:
            shutil.copyfileobj(source, file, CHUNK_BYTES)


def _copy(lease: FileLease, target: BinaryIO) -> None:
    with open(lease.path, "rb", buffering=0) as source:
        shutil.copyfileobj(source, target, CHUNK_BYTES)
