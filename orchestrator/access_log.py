"""The access log of a file tier: one append-only file shared by the node's processes.

A use is ``KEY SIZE SECONDS TENANT``, one ``O_APPEND`` write, so lines do not interleave on a local
file system. Before it evicts, a process reads new lines into its own
:class:`~orchestrator.policy_selection.PolicySelector`, whose state depends on the file alone: all
processes agree without a lock, and a killed one corrupts nothing. Over the size limit, a rename
drops the older half and all reread.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from orchestrator.eviction import TierEntry
from orchestrator.policy_selection import PolicySelector

#: About 90,000 uses, read in under a second.
MAX_BYTES = 8 << 20
#: No tenant can have this ID.
_PLATFORM = "-"


class AccessLog:
    """One per process and tier. All but ``note`` and ``forget`` require the tier's budget lock."""

    def __init__(self, path: Path, budget_bytes: int, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._budget_bytes = budget_bytes
        self._max_bytes = max_bytes
        self.policy_selector = PolicySelector(budget_bytes)
        self._inode = 0
        self._offset = 0

    def note(self, key: str, size_bytes: int, tenant_id: str, now_s: float) -> int:
        """Append a use; return the log's size in bytes.

        Raises:
            OSError: the line cannot be written.
        """
        return self._append(f"{key} {size_bytes} {now_s:.3f} {tenant_id or _PLATFORM}\n")

    def forget(self, key: str) -> None:
        with suppress(OSError):
            self._append(f"{key} 0 0 {_PLATFORM}\n")

    def _append(self, line: str) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.write(descriptor, line.encode())
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def follow(self) -> None:
        """Read the lines appended since the last call."""
        try:
            file = open(self._path, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset = status.st_ino, 0
                self.policy_selector = PolicySelector(self._budget_bytes)
            file.seek(self._offset)
            new = file.read()
        whole = new.rfind(b"\n") + 1  # the last line may be incomplete
        self._offset += whole
        for line in new[:whole].splitlines():
            self._apply_line(line)

    def _apply_line(self, line: bytes) -> None:
        try:
            key, size, seconds, tenant_id = line.decode("ascii").split(" ")
            size_bytes, at_s = int(size), float(seconds)
        except ValueError:  # a torn line
            return
        if size_bytes <= 0:
            self.policy_selector.forget(key)
        else:
            self.policy_selector.used(
                key, size_bytes, "" if tenant_id == _PLATFORM else tenant_id, at_s
            )

    def shorten(self) -> bool:
        """Drop the older half if over ``max_bytes``; return whether it did."""
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
        """``last_used_s`` is the fallback for an entry no longer in the log."""
        return self.policy_selector.entry(key, size_bytes, last_used_s)
