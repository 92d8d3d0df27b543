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
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from assets.content import Blob
from assets.storage.object_store import HashingWriter
from assets.storage.private_folder import UnsafeFolder, private_folder
from orchestrator.access_log import AccessLog
from orchestrator.errors import Corrupt, TierError, TierFull, TierUnusable, TooLargeForTier
from orchestrator.eviction import SHARE, TierEntry, victims
from orchestrator.locks import acquire, exclusive
from orchestrator.policy_selection import EvictionPolicy

log = logging.getLogger(__name__)

#: Reasons for a pin; popular entries are evicted if nothing else is left.
OPERATOR, POPULAR = "operator", "popular"
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
        self._share = share
        self._clock = clock
        self._root = root
        self._objects = root / "objects"
        self._locks = root / "locks"
        self._incoming = root / "incoming"
        self._pins = root / "pins"
        self._quarantine = root / "quarantine"
        try:
            private_folder(root)
        except UnsafeFolder as error:
            raise TierUnusable(f"the {name} tier: {error}") from None
        for folder in (self._objects, self._locks, self._incoming, self._pins, self._quarantine):
            folder.mkdir(parents=True, exist_ok=True)
        for obsolete in ("uses", "owners"):  # of earlier versions
            shutil.rmtree(root / obsolete, ignore_errors=True)
        self._access_log = AccessLog(root / "uses.log", budget_bytes)
        self._use_count = 0

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
                self._evict(needed, blob.size_bytes)
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
                self._evict(size_bytes, size_bytes)

    def _evict(self, needed_bytes: int, wanted_bytes: int) -> None:
        """Free corrupted files, then abandoned fetches, then entries (none on TierFull)."""
        for corrupted in self._quarantine.iterdir():
            if needed_bytes > 0:
                with suppress(FileNotFoundError):
                    needed_bytes -= corrupted.stat().st_size
                    corrupted.unlink()
        for orphan in self._incoming.iterdir():
            if needed_bytes > 0 and orphan.suffix != ".lock":
                needed_bytes -= self._drop_orphan(orphan)
        if needed_bytes <= 0:
            return
        with suppress(OSError):
            self._access_log.shorten()
        self._access_log.follow()
        entries, owned, now_s = self._entries(), Counter[str](), self._clock()
        session_bytes = self._access_log.policy_selector.session_bytes
        for entry in entries:
            if entry.tenant_id:
                owned[entry.tenant_id] += entry.size_bytes
        pins = self._pins_within(entries)
        unpinned = [entry for entry in entries if entry.key not in pins]
        popular = [entry for entry in entries if pins.get(entry.key) == POPULAR]
        locked: dict[str, int] = {}
        leased: set[str] = set()
        freed_bytes = 0
        try:
            for candidates in (unpinned, unpinned + popular):
                sizes = {entry.key: entry.size_bytes for entry in candidates}
                while freed_bytes < needed_bytes:
                    idle = [e for e in candidates if e.key not in locked and e.key not in leased]
                    missing = needed_bytes - freed_bytes
                    chosen = victims(
                        idle, missing, self.budget_bytes, self._share, owned, now_s, session_bytes
                    )
                    if not chosen:
                        break
                    for key in chosen:
                        lock = acquire(self._locks / key, shared=False, wait=False)
                        if lock is None:
                            leased.add(key)
                        else:
                            locked[key] = lock
                            freed_bytes += sizes[key]
            if freed_bytes < needed_bytes:
                raise TierFull(self.name, wanted_bytes, self.budget_bytes)
            for key in locked:
                (self._objects / key).unlink(missing_ok=True)
                (self._locks / key).unlink()
        finally:
            for lock in locked.values():
                os.close(lock)

    def _pins_within(self, entries: Sequence[TierEntry]) -> dict[str, str]:
        """Operator pins beyond half of the budget count as popular."""
        pins, pinned_bytes = self.pins(), 0
        for entry in sorted(entries, key=lambda entry: entry.key):
            if pins.get(entry.key) == OPERATOR:
                pinned_bytes += entry.size_bytes
                if pinned_bytes > self.budget_bytes / 2:
                    pins[entry.key] = POPULAR
        return pins

    def _entries(self) -> list[TierEntry]:
        return [
            self._access_log.entry(key, size_bytes, self._last_used_s(key))
            for key, size_bytes in self.resident().items()
        ]

    def _drop_orphan(self, part: Path) -> int:
        descriptor = acquire(part.with_name(part.name + ".lock"), shared=False, wait=False)
        if descriptor is None:
            return 0
        try:
            size = part.stat().st_size
            part.unlink()
            return size
        except FileNotFoundError:
            return 0
        finally:
            os.close(descriptor)

    def _last_used_s(self, key: str) -> float:
        try:
            return (self._locks / key).stat().st_mtime
        except FileNotFoundError:
            return 0.0

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

    def pin(self, key: str, reason: str = OPERATOR) -> None:
        """Pin the entry, resident or not."""
        (self._pins / key).write_text(reason)

    def unpin(self, key: str) -> None:
        (self._pins / key).unlink(missing_ok=True)

    def pins(self) -> dict[str, str]:
        """Return key → reason."""
        pins = {}
        for path in self._pins.iterdir():
            with suppress(FileNotFoundError):
                pins[path.name] = path.read_text() or OPERATOR
        return pins

    def pin_exactly(self, pins: Mapping[str, str]) -> None:
        """Pin ``pins`` (key → reason); unpin all others."""
        current = self.pins()
        for key, reason in pins.items():
            if current.get(key) != reason:
                self.pin(key, reason)
        for key in current.keys() - pins.keys():
            self.unpin(key)

    def resident(self) -> dict[str, int]:
        """Return key → size in bytes."""
        return _sizes(self._objects)

    def used_bytes(self) -> int:
        """Count entries, fetches in progress and quarantined files."""
        folders = (self._objects, self._incoming, self._quarantine)
        return sum(sum(_sizes(folder).values()) for folder in folders)

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


def _sizes(folder: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(".lock"):
                try:
                    sizes[entry.name] = entry.stat().st_size
                except FileNotFoundError:
                    continue
    return sizes
