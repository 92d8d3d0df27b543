"""Which canonical files the library refers to, so that none is lost and none is kept for ever.

A blob is claimed in the records before its bytes are stored, and its bytes are removed before
its record is: so whatever a crash leaves behind, one of the two says that something is there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from assets.content import Blob


class BlobRecords(Protocol):
    """Every method is one transaction."""

    def claim(self, blob: Blob) -> bool:
        """About to be referred to: no collector takes it for a while. False while one is
        taking it just now; ask again a little later."""

    def live(self, keys: Collection[str]) -> set[str]:
        """Those that a live asset refers to."""

    def known(self, keys: Collection[str]) -> set[str]:
        """Those that have a record, whether anything refers to them or not."""

    def stored_bytes(self, tenant_id: str, *, restorable: bool = True) -> int:
        """All that is kept for a tenant: what its assets refer to, deleted ones that can be
        restored included, each blob once; uploads until their ingest has ended; and what
        what :meth:`keep` was told of. Without ``restorable`` deleted assets are left out."""

    def keep(self, key: str, tenant_id: str, size_bytes: int) -> None:
        """Count an object of the store that is not an asset's file: a result, an image or a preview
        of a tenant. Call it after the object was stored."""

    def unkeep(self, keys: Collection[str]) -> None:
        """Count these objects no more. Call it before they are removed: an object that a crash
        leaves behind is found and removed later."""

    def garbage(self, before_s: float) -> Sequence[str]:
        """What no asset refers to, a restorable one either, and nobody claimed since."""

    def mark_for_deletion(self, key: str, before_s: float) -> bool:
        """Take a piece of garbage, if it is that still and nobody else has taken it since then;
        its bytes may then be removed."""

    def forget(self, key: str) -> None:
        """Its bytes are gone."""
