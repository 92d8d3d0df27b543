"""Where the library's rows are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from assets.asset import Asset, AssetKind, Visibility


@dataclass(frozen=True, slots=True)
class Query:
    """A listing of live assets; every field that is given narrows it.

    ``member_id`` leaves out what is private to other members; ``shared_with`` finds what is
    shared with the tenant of that name.
    """

    tenant_id: str | None = None
    member_id: str | None = None
    visibility: Visibility | None = None
    shared_with: str | None = None
    status: str | None = None
    owner: str | None = None
    name: str | None = None
    kinds: Sequence[AssetKind] = ()
    ids: Sequence[str] = ()
    #: Of the file that was uploaded.
    sha256: str | None = None
    #: Words; something in the name, description or trigger words must begin with each.
    text: str = ""
    tags: Sequence[str] = ()
    limit: int = 100
    offset: int = 0
    #: Only what comes after the asset of this id: a page that stays itself while others are
    #: added and deleted.
    after: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """``total`` counts the whole listing, whatever page of it this is."""

    assets: Sequence[Asset]
    total: int
    has_more: bool


class AssetRecords(Protocol):
    """Every method is one transaction."""

    def add(self, asset: Asset, *, new_version: bool = False, most: int | None = None) -> Asset:
        """The asset with its version: the next one that the tenant's name has never had.

        Raises:
            NameTaken: the tenant has a live asset of that name and no new version is wanted.
            QuotaExceeded: the tenant has ``most`` live assets already.
        """

    def get(self, asset_id: str) -> Asset | None: ...

    def find(
        self, tenant_id: str, name: str, version: int | None = None, member_id: str | None = None
    ) -> Asset | None:
        """A tenant's live asset by its name: that version, else the newest that is ready, else
        the newest. With ``member_id``, of those that are not private to others."""

    def find_foreign(
        self, owner: str, name: str, version: int | None = None, reader: str = ""
    ) -> Asset | None:
        """A live asset by ``owner:name`` that is public, or shared with the tenant ``reader``."""

    def update(
        self, asset_id: str, changes: Mapping[str, Any], *, expect: Sequence[str] = ()
    ) -> Asset | None:
        """Change fields; None when the row is gone or its status is not one of ``expect``."""

    def purge(self, asset_id: str) -> bool:
        """Let a deleted asset go for good: its row, or, where its version was in use and is the
        last of its name, all but its number. Whether it was deleted."""

    def rename(self, asset_id: str, name: str) -> Asset | None:
        """Another name, for every live version of that asset's name; None when it is gone.

        Raises:
            NameTaken: the tenant has another live asset of the new name.
        """

    def used(self, asset_ids: Sequence[str]) -> None:
        """Count one use of each, now."""

    def list(self, query: Query) -> Page: ...

    def previews(self) -> set[str]:
        """The keys of all preview pictures of assets that are there or can be restored."""

    def referred(self) -> Mapping[str, Sequence[str]]:
        """The ids of live assets that are ready, by the content keys that they refer to."""

    def miskeyed(self) -> Sequence[Asset]:
        """Live assets that are ready and became public, or ceased to be, after their content
        keys were given."""

    def forgotten(self, before_s: float) -> Sequence[Asset]:
        """Assets that were deleted before then and still refer to blobs."""

    def restorable(self, tenant_id: str) -> Sequence[Asset]:
        """A tenant's deleted assets that still refer to blobs, the one first that was deleted
        first."""

    def stale(self, status: str, before_s: float) -> Sequence[Asset]:
        """Assets of that status whose last change is older than ``before_s``."""

    def expired(self, now_s: float) -> Sequence[Asset]:
        """Live assets whose ``expires_at_s`` has passed."""
