"""References from assets to blobs: the basis of garbage collection.

A blob's record is written before its bytes and removed after them: no crash leaves bytes without a
record.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from assets.content import Blob


class BlobRecords(Protocol):
    """Every method is one transaction."""

    def claim(self, blob: Blob) -> bool:
        """Protect a blob that an asset will refer to. False during its deletion: retry."""

    def live(self, keys: Collection[str]) -> set[str]:
        """Return the keys that a live asset refers to."""

    def known(self, keys: Collection[str]) -> set[str]:
        """Return the keys with a record."""

    def stored_bytes(self, tenant_id: str, *, restorable: bool = True) -> int:
        """Sum a tenant's blobs, each once, uploads until ingested, and kept objects. ``restorable``
        includes deleted assets."""

    def keep(self, key: str, tenant_id: str, size_bytes: int) -> None:
        """Count a stored result, image or preview. Call it after storing."""

    def unkeep(self, keys: Collection[str]) -> None:
        """Stop counting objects. Call it before deleting: a crash leaves an orphan."""

    def garbage(self, before_s: float) -> Sequence[str]:
        """Return unreferenced keys last claimed before ``before_s``; restorable assets refer,
        too."""

    def mark_for_deletion(self, key: str, before_s: float) -> bool:
        """Allow deletion of the bytes. False when not garbage, or marked by another collector since
        ``before_s``."""

    def forget(self, key: str) -> None:
        """Remove a marked blob's record, after its bytes."""
