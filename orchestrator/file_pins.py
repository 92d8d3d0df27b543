"""The pins of a file tier: what eviction spares, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.eviction import TierEntry

#: Reasons for a pin; popular entries are evicted if nothing else is left.
OPERATOR, POPULAR = "operator", "popular"


class FilePins:
    """A folder of KEY, with the reason as its text; all processes of a node share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, key: str, reason: str = OPERATOR) -> None:
        """Pin the entry, resident or not."""
        (self._folder / key).write_text(reason)

    def remove(self, key: str) -> None:
        (self._folder / key).unlink(missing_ok=True)

    def all(self) -> dict[str, str]:
        """Return key → reason."""
        pins = {}
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                pins[path.name] = path.read_text() or OPERATOR
        return pins

    def set_exactly(self, pins: Mapping[str, str]) -> None:
        """Pin ``pins`` (key → reason); unpin all others."""
        current = self.all()
        for key, reason in pins.items():
            if current.get(key) != reason:
                self.add(key, reason)
        for key in current.keys() - pins.keys():
            self.remove(key)

    def within(self, entries: Sequence[TierEntry], budget_bytes: int) -> dict[str, str]:
        """Operator pins beyond half of the budget count as popular."""
        pins, pinned_bytes = self.all(), 0
        for entry in sorted(entries, key=lambda entry: entry.key):
            if pins.get(entry.key) == OPERATOR:
                pinned_bytes += entry.size_bytes
                if pinned_bytes > budget_bytes / 2:
                    pins[entry.key] = POPULAR
        return pins
