"""Frees bytes of a file tier, sparing leases and pins."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from orchestrator.access_log import AccessLog
from orchestrator.errors import TierFull
from orchestrator.eviction import TierEntry, victims
from orchestrator.file_pins import POPULAR, FilePins
from orchestrator.locks import acquire


class FileEviction:
    """The caller holds the budget's lock."""

    def __init__(
        self,
        name: str,
        root: Path,
        budget_bytes: int,
        pins: FilePins,
        access_log: AccessLog,
        clock: Callable[[], float],
        share: float,
    ) -> None:
        self._name = name
        self._objects, self._locks = root / "objects", root / "locks"
        self._incoming, self._quarantine = root / "incoming", root / "quarantine"
        self._budget_bytes = budget_bytes
        self._pins = pins
        self._access_log = access_log
        self._clock = clock
        self._share = share

    def free(self, needed_bytes: int, wanted_bytes: int) -> None:
        """Free corrupted files, then abandoned fetches, then entries.

        Raises:
            TierFull: too much is leased; no entry was evicted.
        """
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
        pins = self._pins.within(entries, self._budget_bytes)
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
                        idle, missing, self._budget_bytes, self._share, owned, now_s, session_bytes
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
                raise TierFull(self._name, wanted_bytes, self._budget_bytes)
            for key in locked:
                (self._objects / key).unlink(missing_ok=True)
                (self._locks / key).unlink()
        finally:
            for lock in locked.values():
                os.close(lock)

    def _entries(self) -> list[TierEntry]:
        return [
            self._access_log.entry(key, size_bytes, self._last_used_s(key))
            for key, size_bytes in file_sizes(self._objects).items()
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


def file_sizes(folder: Path) -> dict[str, int]:
    """File name → size in bytes, without locks."""
    sizes: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(".lock"):
                try:
                    sizes[entry.name] = entry.stat().st_size
                except FileNotFoundError:
                    continue
    return sizes
