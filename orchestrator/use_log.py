"""How often, and by whom, the entries of a folder are come back for, in small files.

Shared by the processes of a node without a lock: each file is replaced whole, and when two write
at once one visit is lost. Outlives what it counts: an entry that returns is not new.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from orchestrator.eviction import Entry, alone, owned_by

#: Files in each folder; beyond that the half that was longest untouched is forgotten.
_REMEMBERED = 20_000


class UseLog:
    def __init__(self, root: Path, session_s: float) -> None:
        self._session_s = session_s
        self._assets = root / "uses"
        self._owners = root / "owners"
        for folder in (self._assets, self._owners):
            folder.mkdir(parents=True, exist_ok=True)
        self._noted = 0

    def note(self, key: str, owner: str, now_s: float) -> None:
        """Somebody uses the entry; uses that are close together are one visit."""
        visits, of, last_s = _read(self._assets / key)
        is_new = now_s - last_s > self._session_s
        shared = owned_by(of, owner)
        if is_new or shared != of:
            _write(self._assets / key, visits + is_new, shared, now_s)
        else:
            _touch(self._assets / key, now_s)
        if owner:
            path = self._owners / owner
            visits, _, last_s = _read(path)
            if now_s - last_s > self._session_s:
                _write(path, visits + 1, "", now_s)
            else:
                _touch(path, now_s)
        self._noted += 1
        if self._noted % 1000 == 0:
            for folder in (self._assets, self._owners):
                _forget_some(folder)

    def entry(self, key: str, size_bytes: int, last_used_s: float) -> Entry:
        visits, owner, _ = _read(self._assets / key)
        owner_visits = _read(self._owners / owner)[0] if alone(owner) else 0
        return Entry(key, size_bytes, alone(owner), last_used_s, visits, owner_visits)


def _read(path: Path) -> tuple[int, str, float]:
    """Visits, owner, when it was used last."""
    try:
        with open(path) as file:
            visits, _, owner = file.read().partition(" ")
            return int(visits), owner, os.fstat(file.fileno()).st_mtime
    except (FileNotFoundError, ValueError):
        return 0, "", 0.0


def _write(path: Path, visits: int, owner: str, now_s: float) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}")
    temporary.write_text(f"{visits} {owner}")
    os.utime(temporary, (now_s, now_s))
    os.rename(temporary, path)


def _touch(path: Path, now_s: float) -> None:
    with suppress(FileNotFoundError):
        os.utime(path, (now_s, now_s))


def _forget_some(folder: Path) -> None:
    with os.scandir(folder) as found:
        entries = list(found)
    if len(entries) > _REMEMBERED:
        aged = []
        for entry in entries:
            with suppress(FileNotFoundError):
                aged.append((entry.stat().st_mtime, entry.path))
        for _, path in sorted(aged)[: len(aged) // 2]:
            Path(path).unlink(missing_ok=True)
