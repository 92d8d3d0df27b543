"""References from assets to blobs: the basis of garbage collection.

A blob's record is written before its bytes are stored and removed after its bytes are deleted, so
that after a crash every stored blob still has a record.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from assets.content import Blob


class BlobRecords(Protocol):
    """Every method is one transaction."""

    def claim(self, blob: Blob) -> bool:
        """Protect a blob from garbage collection before an asset refers to it. Return False while
        the blob is being deleted; retry a little later."""

    def live(self, keys: Collection[str]) -> set[str]:
        """Return the keys to which a live asset refers."""

    def known(self, keys: Collection[str]) -> set[str]:
        """Return the keys that have a record, whether referred to or not."""

    def stored_bytes(self, tenant_id: str, *, restorable: bool = True) -> int:
        """Return a tenant's stored bytes: the blobs of its assets, each once, including deleted
        assets that can be restored; uploads until their ingest has ended; and the objects recorded
        by :meth:`keep`. ``restorable=False`` leaves deleted assets out."""

    def keep(self, key: str, tenant_id: str, size_bytes: int) -> None:
        """Record an object that is not an asset's file (a result, image or preview) in the tenant's
        stored bytes. Call it after the object was stored."""

    def unkeep(self, keys: Collection[str]) -> None:
        """Remove these objects from the stored bytes. Call it before they are deleted: an object
        that a crash leaves behind is an orphan, which is removed later."""

    def garbage(self, before_s: float) -> Sequence[str]:
        """Return the keys to which no asset refers, not even a restorable one, and that were last
        claimed before ``before_s``."""

    def mark_for_deletion(self, key: str, before_s: float) -> bool:
        """Mark a blob for deletion; its bytes may then be deleted. Return False when it is not
        garbage any more, or another collector marked it since ``before_s``."""

    def forget(self, key: str) -> None:
        """Remove the record of a blob that was marked and whose bytes are deleted."""
