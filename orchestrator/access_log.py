"""The uses of a folder's entries, in one file that every process of the node appends to.

A line a use: ``KEY SIZE SECONDS TENANT``. A line is one write to a file that is open for
appending, so lines of several processes do not mix on a local file system. Who makes room reads
what is new into a :class:`~orchestrator.ghosts.Ruler` of its own. What that says is a function of
the file alone: all processes of a node agree on it without a lock, and one that is killed leaves
nothing half-done. When the file is large, its older half is dropped by a rename, and every process
reads the new file from its beginning.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from orchestrator.eviction import TierEntry
from orchestrator.ghosts import Ruler

#: Some 90,000 uses, which take less than a second to read.
MAX_BYTES = 8 << 20
#: Stands for the platform itself, which no tenant's name can be.
_NOBODY = "-"


class AccessLog:
    """One instance a process and tier. ``note`` and ``forget`` may be called at any time; the rest
    by one process at a time, which holds the tier's lock."""

    def __init__(self, path: Path, budget_bytes: int, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._budget_bytes = budget_bytes
        self._max_bytes = max_bytes
        self.ruler = Ruler(budget_bytes)
        #: Of the file as far as it was read.
        self._inode = 0
        self._offset = 0

    def note(self, key: str, size_bytes: int, tenant_id: str, now_s: float) -> int:
        """Record a use of the entry; ``tenant_id`` is empty for the platform itself. Returns the
        log's size in bytes.

        Raises:
            OSError: the disk takes no line.
        """
        return self._append(f"{key} {size_bytes} {now_s:.3f} {tenant_id or _NOBODY}\n")

    def forget(self, key: str) -> None:
        """There is no such entry any more anywhere."""
        with suppress(OSError):
            self._append(f"{key} 0 0 {_NOBODY}\n")

    def _append(self, line: str) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.write(descriptor, line.encode())
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def follow(self) -> None:
        """Read what is new, by whomever it was written."""
        try:
            file = open(self._path, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset = status.st_ino, 0
                self.ruler = Ruler(self._budget_bytes)
            file.seek(self._offset)
            new = file.read()
        whole = new.rfind(b"\n") + 1  # the rest is being written
        self._offset += whole
        for line in new[:whole].splitlines():
            self._read(line)

    def _read(self, line: bytes) -> None:
        try:
            key, size, seconds, tenant_id = line.decode("ascii").split(" ")
            size_bytes, at_s = int(size), float(seconds)
        except ValueError:  # torn, as by a disk that was full
            return
        if size_bytes <= 0:
            self.ruler.forget(key)
        else:
            self.ruler.used(key, size_bytes, "" if tenant_id == _NOBODY else tenant_id, at_s)

    def shorten(self) -> bool:
        """Drop the older half of a log that is too large. Whether it was."""
        try:
            if self._path.stat().st_size <= self._max_bytes:
                return False
            data = self._path.read_bytes()
        except FileNotFoundError:
            return False
        begin = data.find(b"\n", len(data) // 2) + 1
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        try:
            temporary.write_bytes(data[begin:])
            temporary.rename(self._path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return True

    def entry(self, key: str, size_bytes: int, last_used_s: float) -> TierEntry:
        """``last_used_s`` is what the folder knows of an entry whose uses have been dropped."""
        return self.ruler.entry(key, size_bytes, last_used_s)
