"""A tier of files: disk, or host RAM on tmpfs. One class, one folder, no daemon.

Shared by every process of a node. On disk::

    objects/KEY     the bytes; appears by rename, leaves by unlink, is never changed
    locks/KEY       flock(LOCK_SH) = a lease; its mtime = when the entry was last used
    incoming/KEY    bytes on their way, already as large as they will be (so they count)
    incoming/KEY.lock   held by the one process of the node that fetches KEY
    pins/KEY        present while an operator holds the entry here
    budget.lock     held while room is made

Truncating a mapped file kills the process that maps it, so nothing here truncates.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from assets.content import Blob
from assets.store import Digesting
from orchestrator.errors import Corrupt, TierError, TierFull, TooLarge
from orchestrator.locks import acquire, exclusive

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
    """A content-addressed folder with a byte budget, least recently used out first."""

    def __init__(self, name: str, root: Path, budget_bytes: int) -> None:
        self.name = name
        self.budget_bytes = budget_bytes
        self._root = root
        self._objects = root / "objects"
        self._locks = root / "locks"
        self._incoming = root / "incoming"
        self._pins = root / "pins"
        for folder in (self._objects, self._locks, self._incoming, self._pins):
            folder.mkdir(parents=True, exist_ok=True)

    def __repr__(self) -> str:
        resident = self.resident()
        used = sum(resident.values())
        return f"<{self.name} tier: {len(resident)} files, {used} of {self.budget_bytes} bytes>"

    def lease(self, blob: Blob) -> FileLease | None:
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
        os.utime(descriptor)
        return FileLease(path, descriptor)

    def admit(self, blob: Blob, fill: Fill) -> tuple[FileLease, bool]:
        """The entry, written by ``fill`` if nobody else brings it first.

        Returns the lease and whether this call moved the bytes. Of all the processes
        of the node that ask at once, one fetches; if it dies, the next takes over.

        Raises:
            TooLarge, TierFull: before anything is fetched.
            Corrupt: the bytes are not the blob's; nothing is left behind.
        """
        if blob.size_bytes > self.budget_bytes:
            raise TooLarge(self.name, blob.size_bytes, self.budget_bytes)
        with exclusive(self._incoming / f"{blob.key}.lock"):
            lease = self.lease(blob)
            if lease is not None:
                return lease, False
            return self._bring(blob, fill), True

    def _bring(self, blob: Blob, fill: Fill) -> FileLease:
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
            os.rename(part, self._objects / blob.key)
            os.utime(self._locks / blob.key)
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
                with open(part, "wb") as file:
                    if blob.size_bytes:
                        os.posix_fallocate(file.fileno(), 0, blob.size_bytes)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise TierError(f"the {self.name} tier cannot grow: {error}") from error

    def _evict(self, needed_bytes: int, wanted_bytes: int) -> None:
        """Unlink the least recently used until ``needed_bytes`` are free; nothing at all when
        they cannot be, because what is leased or pinned stays."""
        for orphan in self._incoming.iterdir():
            if needed_bytes > 0 and orphan.suffix != ".lock":
                needed_bytes -= self._drop_orphan(orphan)
        victims: list[tuple[Path, int]] = []
        try:
            for path in sorted(self._objects.iterdir(), key=self._last_used):
                if needed_bytes <= 0:
                    break
                if not (self._pins / path.name).exists():
                    lock = acquire(self._locks / path.name, shared=False, wait=False)
                    if lock is not None:
                        victims.append((path, lock))
                        needed_bytes -= path.stat().st_size
            if needed_bytes > 0:
                raise TierFull(self.name, wanted_bytes, self.budget_bytes)
            for path, _ in victims:
                path.unlink()
                (self._locks / path.name).unlink()
        finally:
            for _, lock in victims:
                os.close(lock)

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

    def _last_used(self, path: Path) -> float:
        try:
            return (self._locks / path.name).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def drop(self, key: str) -> bool:
        """Remove the entry unless somebody leases it; whether it is gone."""
        lock = acquire(self._locks / key, shared=False, wait=False)
        if lock is None:
            return False
        try:
            (self._objects / key).unlink(missing_ok=True)
            (self._locks / key).unlink()
        finally:
            os.close(lock)
        return True

    def pin(self, key: str) -> None:
        """Hold the entry here, present or future, until it is unpinned."""
        (self._pins / key).touch()

    def unpin(self, key: str) -> None:
        (self._pins / key).unlink(missing_ok=True)

    def resident(self) -> dict[str, int]:
        """Bytes by key of what can be leased."""
        return _sizes(self._objects)

    def used_bytes(self) -> int:
        """Everything that counts against the budget, bytes on their way included."""
        return sum(_sizes(self._objects).values()) + sum(_sizes(self._incoming).values())

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
