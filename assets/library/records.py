"""The interface of the asset database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from assets.asset import Asset, AssetKind, Visibility


@dataclass(frozen=True, slots=True)
class Query:
    """A listing of live assets; each given field is a filter.

    ``member_id`` excludes assets that are private to other members; ``shared_with`` selects assets
    that are shared with the tenant of that name.
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
    #: sha256 of the uploaded file.
    sha256: str | None = None
    #: Search words: each must be a prefix of a word in the name, description or trigger words.
    text: str = ""
    tags: Sequence[str] = ()
    limit: int = 100
    offset: int = 0
    #: Only assets with a greater id: pages stay stable while assets are added and deleted.
    after: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing; ``total`` counts the assets of all pages."""

    assets: Sequence[Asset]
    total: int
    has_more: bool


class AssetRecords(Protocol):
    """Every method is one transaction."""

    def add(self, asset: Asset, *, new_version: bool = False, most: int | None = None) -> Asset:
        """Add the asset and return it with its version number, which is never reused.

        Raises:
            NameTaken: the tenant has a live asset of that name and ``new_version`` is False.
            QuotaExceeded: the tenant already has ``most`` live assets.
        """

    def get(self, asset_id: str) -> Asset | None: ...

    def find(
        self, tenant_id: str, name: str, version: int | None = None, member_id: str | None = None
    ) -> Asset | None:
        """Return a tenant's live asset by name: the given version, or the newest ready one, or the
        newest. ``member_id`` excludes assets that are private to other members."""

    def find_foreign(
        self, owner: str, name: str, version: int | None = None, reader: str = ""
    ) -> Asset | None:
        """Return another tenant's live asset that is public or shared with tenant ``reader``."""

    def update(
        self, asset_id: str, changes: Mapping[str, Any], *, expect: Sequence[str] = ()
    ) -> Asset | None:
        """Change fields and return the asset; None when the row does not exist or its status is not
        in ``expect``."""

    def purge(self, asset_id: str) -> bool:
        """Remove a deleted asset for good. If it was ingested and is the last version of its name,
        a row with the version number remains. Return whether the asset was a deleted one."""

    def rename(self, asset_id: str, name: str) -> Asset | None:
        """Rename every live version of the asset's name; None when the asset is deleted.

        Raises:
            NameTaken: the tenant has another live asset of the new name.
        """

    def used(self, asset_ids: Sequence[str]) -> None:
        """Count one use of each asset."""

    def list(self, query: Query) -> Page: ...

    def previews(self) -> set[str]:
        """The object keys of the preview images of live and restorable assets."""

    def referred(self) -> Mapping[str, Sequence[str]]:
        """The ids of ready assets, by the content keys that they refer to."""

    def miskeyed(self) -> Sequence[Asset]:
        """Ready assets whose visibility or prediction type changed so that their content keys are
        wrong."""

    def forgotten(self, before_s: float) -> Sequence[Asset]:
        """Assets that were deleted before ``before_s`` and are not yet purged."""

    def restorable(self, tenant_id: str) -> Sequence[Asset]:
        """A tenant's deleted assets that still refer to blobs, in the order of deletion."""

    def stale(self, status: str, before_s: float) -> Sequence[Asset]:
        """Assets of that status that were last changed before ``before_s``."""

    def expired(self, now_s: float) -> Sequence[Asset]:
        """Live assets whose ``expires_at_s`` has passed."""
