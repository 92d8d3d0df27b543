"""A tier of files: disk, or host RAM on tmpfs. One class, one folder, no daemon.

Shared by every process of a node. On disk::

    objects/KEY     the bytes; appears by rename, leaves by unlink, is never changed
    locks/KEY       flock(LOCK_SH) = a lease; its mtime = when the entry was last used
    incoming/KEY    bytes on their way, already as large as they will be (so they count)
    incoming/KEY.lock   held by the one process of the node that fetches KEY
    pins/KEY        present while the entry is held here: "operator", or "popular", which
                    yields when there is no other way
    uses.log        a line for each use of an entry
    quarantine/KEY  bytes that rotted here; the last few, for whoever wants to know why, as
                    long as there is room
    budget.lock     held while room is made

Truncating a mapped file kills the process that maps it, so nothing here truncates.
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
from assets.storage.object_store import Digesting
from assets.storage.private_folder import UnsafeFolder, private_folder
from orchestrator.access_log import AccessLog
from orchestrator.errors import Corrupt, TierError, TierFull, TierUnusable, TooLargeForTier
from orchestrator.eviction import SHARE, TierEntry, victims
from orchestrator.ghosts import Law
from orchestrator.locks import acquire, exclusive

log = logging.getLogger(__name__)

#: Why an entry is held here. What is popular yields when there is no other way.
OPERATOR, POPULAR = "operator", "popular"
#: Uses between two looks at the size of their log.
_SHORTEN_EVERY = 1_000
#: How many files that rotted are kept.
_QUARANTINED = 2

Fill = Callable[[BinaryIO], None]


@dataclass(slots=True)
class FileLease:
    """While it is held the file stays. Release it once; a dead holder's ends by itself."""

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
    """A content-addressed folder with a byte budget; what must leave it, eviction.py says.

    ``tenant_id`` is the tenant for which an entry is used; empty for the platform itself.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        budget_bytes: int,
        *,
        clock: Callable[[], float] = time.time,
        share: float = SHARE,
    ) -> None:
        """``clock`` is the clock of the files' times.

        Raises:
            TierUnusable: others may write to the folder.
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
        for old in ("uses", "owners"):  # of versions that kept a file for each
            shutil.rmtree(root / old, ignore_errors=True)
        self._uses = AccessLog(root / "uses.log", budget_bytes)
        self._noted = 0

    def __repr__(self) -> str:
        resident = self.resident()
        used = sum(resident.values())
        return f"<{self.name} tier: {len(resident)} files, {used} of {self.budget_bytes} bytes>"

    def lease(self, blob: Blob, tenant_id: str = "") -> FileLease | None:
        """The entry, if it is here."""
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
        self._used(blob, descriptor, tenant_id)
        return FileLease(path, descriptor)

    def _used(self, blob: Blob, descriptor: int, tenant_id: str) -> None:
        now_s = self._clock()
        with suppress(OSError):  # a note that a full disk does not take is no reason to fail
            self._uses.note(blob.key, blob.size_bytes, tenant_id, now_s)
            os.utime(descriptor, (now_s, now_s))
        self._noted += 1
        if self._noted % _SHORTEN_EVERY == 0:  # a tier that is never full makes no room
            with suppress(OSError), exclusive(self._root / "budget.lock"):
                self._uses.shorten()

    def admit(self, blob: Blob, fill: Fill, tenant_id: str = "") -> tuple[FileLease, bool]:
        """The entry, written by ``fill`` if nobody else brings it first.

        Returns the lease and whether this call moved the bytes. Of all the processes
        of the node that ask at once, one fetches; if it dies, the next takes over.

        Raises:
            TooLarge, TierFull: before anything is fetched. Whatever ``fill`` raises.
            Corrupt: the bytes are not the blob's; nothing is left behind.
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
                writer = Digesting(file)
                fill(writer)  # type: ignore[arg-type]  # a writer is all that fill may use
                if writer.size_bytes != blob.size_bytes or writer.hexdigest() != blob.sha256:
                    raise Corrupt(
                        f"{blob.key}: {writer.size_bytes} bytes arrived that are not the "
                        f"{blob.size_bytes} asked for"
                    )
                file.flush()
                os.fsync(file.fileno())
            descriptor = acquire(self._locks / blob.key, shared=True)
            assert descriptor is not None
            os.rename(part, self._objects / blob.key)
            self._used(blob, descriptor, tenant_id)
            return FileLease(self._objects / blob.key, descriptor)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _reserve(self, blob: Blob, part: Path) -> None:
        with exclusive(self._root / "budget.lock"):
            part.unlink(missing_ok=True)  # of a fetcher that died
            needed = self.used_bytes() + blob.size_bytes - self.budget_bytes
            if needed > 0:
                self._evict(needed, blob.size_bytes)
            try:
                self._allocate(part, blob.size_bytes)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise TierError(f"the {self.name} tier cannot grow: {error}") from error

    def _allocate(self, part: Path, size_bytes: int) -> None:
        """When the disk is fuller than the budget says, what is here makes room for it."""
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
        """Unlink entries until ``needed_bytes`` are free; none at all when they cannot be, because
        what is leased or pinned stays."""
        for rotten in self._quarantine.iterdir():
            if needed_bytes > 0:
                with suppress(FileNotFoundError):
                    needed_bytes -= rotten.stat().st_size
                    rotten.unlink()
        for orphan in self._incoming.iterdir():
            if needed_bytes > 0 and orphan.suffix != ".lock":
                needed_bytes -= self._drop_orphan(orphan)
        if needed_bytes <= 0:
            return
        with suppress(OSError):
            self._uses.shorten()
        self._uses.follow()
        entries, owned, now_s = self._entries(), Counter[str](), self._clock()
        session_bytes = self._uses.ruler.session_bytes
        for entry in entries:
            if entry.tenant_id:
                owned[entry.tenant_id] += entry.size_bytes
        pins = self._pins_within(entries)
        loose = [entry for entry in entries if entry.key not in pins]
        popular = [entry for entry in entries if pins.get(entry.key) == POPULAR]
        locked: dict[str, int] = {}
        leased: set[str] = set()
        freed_bytes = 0
        try:
            for some in (loose, loose + popular):
                sizes = {entry.key: entry.size_bytes for entry in some}
                while freed_bytes < needed_bytes:
                    idle = [e for e in some if e.key not in locked and e.key not in leased]
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
        """Half of the tier can be held for the operator; what is held beyond yields, too."""
        pins, held_bytes = self.pins(), 0
        for entry in sorted(entries, key=lambda entry: entry.key):
            if pins.get(entry.key) == OPERATOR:
                held_bytes += entry.size_bytes
                if held_bytes > self.budget_bytes / 2:
                    pins[entry.key] = POPULAR
        return pins

    def _entries(self) -> list[TierEntry]:
        return [
            self._uses.entry(key, size_bytes, self._last_used_s(key))
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
        """Remove the entry unless somebody leases it; whether it is gone."""
        lock = acquire(self._locks / key, shared=False, wait=False)
        if lock is None:
            return False
        try:
            (self._objects / key).unlink(missing_ok=True)
            (self._locks / key).unlink()
        finally:
            os.close(lock)
        self._uses.forget(key)
        return True

    def quarantine(self, key: str) -> None:
        """Its bytes are not what they were when they came: nobody gets them any more. Whoever
        reads them now keeps reading."""
        with suppress(FileNotFoundError):
            os.rename(self._objects / key, self._quarantine / key)
            log.warning("the %s tier's copy of %s had rotted", self.name, key)
        kept = sorted(self._quarantine.iterdir(), key=lambda path: path.stat().st_ctime)
        for old in kept[:-_QUARANTINED]:
            old.unlink(missing_ok=True)

    def pin(self, key: str, reason: str = OPERATOR) -> None:
        """Hold the entry here, present or future, until it is unpinned."""
        (self._pins / key).write_text(reason)

    def unpin(self, key: str) -> None:
        (self._pins / key).unlink(missing_ok=True)

    def pins(self) -> dict[str, str]:
        """Why each key is held."""
        found = {}
        for path in self._pins.iterdir():
            with suppress(FileNotFoundError):
                found[path.name] = path.read_text() or OPERATOR
        return found

    def pin_just(self, pins: Mapping[str, str]) -> None:
        """Exactly these, each with its reason."""
        held = self.pins()
        for key, reason in pins.items():
            if held.get(key) != reason:
                self.pin(key, reason)
        for key in held.keys() - pins.keys():
            self.unpin(key)

    def resident(self) -> dict[str, int]:
        """Bytes by key of what can be leased."""
        return _sizes(self._objects)

    def used_bytes(self) -> int:
        """Everything that counts against the budget, bytes on their way included."""
        folders = (self._objects, self._incoming, self._quarantine)
        return sum(sum(_sizes(folder).values()) for folder in folders)

    @property
    def law(self) -> Law:
        """Which law of eviction rules, as far as this process has followed."""
        return self._uses.ruler.law

    def check_integrity(self) -> None:
        """Raises AssertionError unless the folder obeys its laws (call it when idle)."""
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
