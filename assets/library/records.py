"""The interface of the asset database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from assets.asset import Asset, AssetChanges, AssetKind, AssetStatus, Visibility


@dataclass(frozen=True, slots=True)
class Query:
    """Selects live assets by each given field.

    ``member_id`` excludes other members' private assets; ``shared_with`` is a tenant's name.
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
    #: Of the uploaded file.
    sha256: str | None = None
    #: Prefixes, each of a word in name, description or trigger words.
    text: str = ""
    tags: Sequence[str] = ()
    limit: int = 100
    offset: int = 0
    #: Only greater ids: pages stay stable during changes.
    after: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One page; ``total`` counts all."""

    assets: Sequence[Asset]
    total: int
    has_more: bool


class AssetRecords(Protocol):
    """Every method is one transaction."""

    def add(self, asset: Asset, *, new_version: bool = False, most: int | None = None) -> Asset:
        """Add the asset and return it with its version number, which is never reused.

        Raises:
            NameTaken: a live asset has the name, without ``new_version``.
            QuotaExceeded: ``most`` live assets exist.
        """

    def get(self, asset_id: str) -> Asset | None: ...

    def find(
        self, tenant_id: str, name: str, version: int | None = None, member_id: str | None = None
    ) -> Asset | None:
        """Return a live version: the given one, else the newest ready, else the newest.
        ``member_id``: see :class:`Query`."""

    def find_foreign(
        self, owner: str, name: str, version: int | None = None, reader: str = ""
    ) -> Asset | None:
        """Return a live asset that is public or shared with tenant ``reader``."""

    def update(
        self,
        asset_id: str,
        changes: AssetChanges,
        *,
        expect: Sequence[AssetStatus] = (),
        revision: int | None = None,
    ) -> Asset | None:
        """Change fields; None when absent, when its status is not in ``expect``, or when it was
        changed since ``revision``."""

    def purge(self, asset_id: str) -> bool:
        """Remove a deleted asset; False if it is not. A name's last version, if ingested, leaves a
        row with its number."""

    def rename(self, asset_id: str, name: str, *, revision: int | None = None) -> Asset | None:
        """Rename every live version of the name; None when deleted, or changed since ``revision``.

        Raises:
            NameTaken: by another live asset.
        """

    def used(self, asset_ids: Sequence[str]) -> None: ...

    def list(self, query: Query) -> Page: ...

    def previews(self) -> set[str]:
        """Preview keys of live and restorable assets."""

    def referred(self) -> Mapping[str, Sequence[str]]:
        """Ready assets' ids by content key."""

    def miskeyed(self) -> Sequence[Asset]:
        """Ready assets whose content keys do not match visibility or prediction type."""

    def forgotten(self, before_s: float) -> Sequence[Asset]:
        """Assets deleted before ``before_s``, not purged."""

    def restorable(self, tenant_id: str) -> Sequence[Asset]:
        """Deleted assets that refer to blobs, by time of deletion."""

    def stale(self, status: str, before_s: float) -> Sequence[Asset]:
        """Assets last changed before ``before_s``."""

    def expired(self, now_s: float) -> Sequence[Asset]: ...
