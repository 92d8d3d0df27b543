"""Where the library's rows are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from assets.asset import Asset, AssetKind


@dataclass(frozen=True, slots=True)
class Query:
    """A listing: a tenant's own live assets, or everybody's public ones."""

    tenant_id: str | None = None
    is_public: bool | None = None
    status: str | None = None
    owner: str | None = None
    name: str | None = None
    kinds: Sequence[AssetKind] = ()
    ids: Sequence[str] = ()
    #: Words that all must be somewhere in the name, description, tags or trigger words.
    text: str = ""
    tags: Sequence[str] = ()
    limit: int = 100
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    assets: Sequence[Asset]
    total: int


class AssetRecords(Protocol):
    """Every method is one transaction."""

    def add(self, asset: Asset) -> None:
        """Raises NameTaken when the tenant has a live asset of that name."""

    def get(self, asset_id: str) -> Asset | None: ...

    def find(self, tenant_id: str, name: str) -> Asset | None:
        """A tenant's live asset by its name."""

    def find_public(self, owner: str, name: str) -> Asset | None:
        """A live public asset by ``owner:name``."""

    def update(
        self, asset_id: str, changes: Mapping[str, Any], *, expect: Sequence[str] = ()
    ) -> Asset | None:
        """Change fields; None when the row is gone or its status is not one of ``expect``.

        Raises NameTaken when the tenant has another live asset of the new name.
        """

    def list(self, query: Query) -> Page: ...

    def stale_uploads(self, before_s: float) -> Sequence[Asset]:
        """Assets still ``uploaded`` whose last change is older than ``before_s``."""
