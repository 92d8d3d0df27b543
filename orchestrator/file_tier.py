"""A cache tier of files: disk, or host RAM on tmpfs.

All processes of a node share the folder::

    objects/KEY         the bytes; renamed into place, unlinked, never modified
    locks/KEY           flock(LOCK_SH) is a lease; the mtime is the last use
    incoming/KEY        a fetch in progress, allocated at full size to count
    incoming/KEY.lock   held by the fetching process
    pins/KEY            the pin's reason
    uses.log            the access log
    quarantine/KEY      the last corrupted copies
    budget.lock         held during eviction and allocation

No file is ever truncated: that kills a process that has it mapped.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from assets.content import Blob
from assets.storage.object_store import HashingWriter
from assets.storage.private_folder import UnsafeFolder, private_folder
from orchestrator.access_log import AccessLog
from orchestrator.errors import Corrupt, TierError, TierFull, TierUnusable, TooLargeForTier
from orchestrator.eviction import SHARE
from orchestrator.file_eviction import FileEviction, file_sizes
from orchestrator.file_pins import FilePins
from orchestrator.locks import acquire, exclusive
from orchestrator.policy_selection import EvictionPolicy

log = logging.getLogger(__name__)

#: Uses between two checks of the log's size.
_SHORTEN_EVERY = 1_000
_MAX_QUARANTINED = 2

Fill = Callable[[BinaryIO], None]


@dataclass(slots=True)
class FileLease:
    """Keeps a file resident. Release is idempotent; the kernel ends a dead process's leases."""

    path: Path
    _descriptor: int | None

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FileLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class FileTier:
    """A content-addressed folder with a byte budget. ``tenant_id`` is empty for the platform
    itself."""

    def __init__(
        self,
        name: str,
        root: Path,
        budget_bytes: int,
        *,
        clock: Callable[[], float] = time.time,
        share: float = SHARE,
    ) -> None:
        """``clock`` must match the clock of the file system's times.

        Raises:
            TierUnusable: the folder is not private to this user.
        """
        self.name = name
        self.budget_bytes = budget_bytes
        self._clock = clock
        self._root = root
        self._objects = root / "objects"
        self._locks = root / "locks"
        self._incoming = root / "incoming"
        self._quarantine = root / "quarantine"
        try:
            private_folder(root)
        except UnsafeFolder as error:
            raise TierUnusable(f"the {name} tier: {error}") from None
        for folder in (self._objects, self._locks, self._incoming, self._quarantine):
            folder.mkdir(parents=True, exist_ok=True)
        for obsolete in ("uses", "owners"):  # of earlier versions
            shutil.rmtree(root / obsolete, ignore_errors=True)
        self._access_log = AccessLog(root / "uses.log", budget_bytes)
        self._use_count = 0
        self.pins = FilePins(root / "pins")
        self._eviction = FileEviction(
            name, root, budget_bytes, self.pins, self._access_log, clock, share
        )

    def __repr__(self) -> str:
        resident = self.resident()
        used = sum(resident.values())
        return f"<{self.name} tier: {len(resident)} files, {used} of {self.budget_bytes} bytes>"

    def lease(self, blob: Blob, tenant_id: str = "") -> FileLease | None:
        """None if not resident."""
        descriptor = acquire(self._locks / blob.key, shared=True)
        assert descriptor is not None
        path = self._objects / blob.key
        try:
            present = path.stat().st_size == blob.size_bytes
        except FileNotFoundError:
            present = False
        if not present:
            os.close(descriptor)
            return None
        self._record_use(blob, descriptor, tenant_id)
        return FileLease(path, descriptor)

    def _record_use(self, blob: Blob, descriptor: int, tenant_id: str) -> None:
        now_s = self._clock()
        with suppress(OSError):  # a full disk must not fail the lease
            self._access_log.note(blob.key, blob.size_bytes, tenant_id, now_s)
            os.utime(descriptor, (now_s, now_s))
        self._use_count += 1
        if self._use_count % _SHORTEN_EVERY == 0:  # eviction shortens it too, but may never run
            with suppress(OSError), exclusive(self._root / "budget.lock"):
                self._access_log.shorten()

    def admit(self, blob: Blob, fill: Fill, tenant_id: str = "") -> tuple[FileLease, bool]:
        """Lease the entry, written by ``fill`` if absent; return also whether it was.

        One process of the node fetches a key at a time; another takes over if it dies.

        Raises:
            TooLargeForTier, TierFull: no room; nothing was fetched.
            TierError: the file cannot be allocated.
            Corrupt: the bytes do not match the blob; nothing is kept.
            Exception: whatever ``fill`` raises.
        """
        if blob.size_bytes > self.budget_bytes:
            raise TooLargeForTier(self.name, blob.size_bytes, self.budget_bytes)
        with exclusive(self._incoming / f"{blob.key}.lock"):
            lease = self.lease(blob, tenant_id)
            if lease is not None:
                return lease, False
            return self._fetch_into(blob, fill, tenant_id), True

    def _fetch_into(self, blob: Blob, fill: Fill, tenant_id: str) -> FileLease:
        part = self._incoming / blob.key
        self._reserve(blob, part)
        try:
            with open(part, "r+b") as file:
                writer = HashingWriter(file)
                fill(writer)  # type: ignore[arg-type]  # fill may only write
                if writer.size_bytes != blob.size_bytes or writer.hexdigest() != blob.sha256:
                    raise Corrupt(
                        f"{blob.key}: the {writer.size_bytes} bytes received do not match the "
                        f"blob's size ({blob.size_bytes} bytes) or digest"
                    )
                file.flush()
                os.fsync(file.fileno())
            descriptor = acquire(self._locks / blob.key, shared=True)
            assert descriptor is not None
            os.rename(part, self._objects / blob.key)
            self._record_use(blob, descriptor, tenant_id)
            return FileLease(self._objects / blob.key, descriptor)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _reserve(self, blob: Blob, part: Path) -> None:
        with exclusive(self._root / "budget.lock"):
            part.unlink(missing_ok=True)  # of a dead process
            needed = self.used_bytes() + blob.size_bytes - self.budget_bytes
            if needed > 0:
                self._eviction.free(needed, blob.size_bytes)
            try:
                self._allocate(part, blob.size_bytes)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise TierError(
                    f"the {self.name} tier cannot allocate {blob.size_bytes} bytes: {error}"
                ) from error

    def _allocate(self, part: Path, size_bytes: int) -> None:
        """Evict and retry if the disk is full before the budget."""
        for attempt in (1, 2):
            try:
                with open(part, "wb") as file:
                    if size_bytes:
                        os.posix_fallocate(file.fileno(), 0, size_bytes)
                return
            except OSError as error:
                part.unlink(missing_ok=True)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or attempt == 2:
                    raise
            with suppress(TierFull):
                self._eviction.free(size_bytes, size_bytes)

    def evict(self, key: str) -> bool:
        """Remove the entry unless leased; return whether it was."""
        lock = acquire(self._locks / key, shared=False, wait=False)
        if lock is None:
            return False
        try:
            (self._objects / key).unlink(missing_ok=True)
            (self._locks / key).unlink()
        finally:
            os.close(lock)
        self._access_log.forget(key)
        return True

    def quarantine(self, key: str) -> None:
        """Move a corrupted entry aside; readers keep their open file."""
        with suppress(FileNotFoundError):
            os.rename(self._objects / key, self._quarantine / key)
            log.warning("quarantined a corrupted copy of %s in the %s tier", key, self.name)
        kept = sorted(self._quarantine.iterdir(), key=lambda path: path.stat().st_ctime)
        for path in kept[:-_MAX_QUARANTINED]:
            path.unlink(missing_ok=True)

    def resident(self) -> dict[str, int]:
        """Return key → size in bytes."""
        return file_sizes(self._objects)

    def used_bytes(self) -> int:
        """Count entries, fetches in progress and quarantined files."""
        folders = (self._objects, self._incoming, self._quarantine)
        return sum(sum(file_sizes(folder).values()) for folder in folders)

    @property
    def policy(self) -> EvictionPolicy:
        """As of this process's last read of the access log."""
        return self._access_log.policy_selector.policy

    def check_integrity(self) -> None:
        """Raise AssertionError if over budget or with abandoned fetches; call it between
        fetches."""
        assert self.used_bytes() <= self.budget_bytes, repr(self)
        parts = [p.name for p in self._incoming.iterdir() if p.suffix != ".lock"]
        assert not parts, f"left in incoming: {parts}"
