"""Changes of what people say of an asset; never of its bytes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from assets.access import may
from assets.asset import Asset, AssetChanges
from assets.errors import Changed, InvalidAsset, StoreError
from assets.hints import Hints
from assets.kinds import KINDS, kinds_with
from assets.library.concurrent_change import change_asset
from assets.library.records import AssetRecords, Query
from assets.library.references import BlobRecords
from assets.library.resolve import find
from assets.library.validation import check_expiry, check_name, checked_visibility, normal_name
from assets.prediction import Prediction
from assets.principal import Principal
from assets.storage.object_paths import preview_key
from assets.storage.object_store import ObjectStore, put_bytes, read_bytes

#: In one rename.
MAX_VERSIONS = 10_000


@dataclass(frozen=True, slots=True)
class Change:
    """An update of an asset. None leaves a field unchanged; ``expires_at_s`` 0 means never."""

    name: str | None = None
    description: str | None = None
    trigger_words: Sequence[str] | None = None
    tags: Sequence[str] | None = None
    license: str | None = None
    visibility: str | None = None
    shared_with: Sequence[str] | None = None
    expires_at_s: float | None = None
    #: Checkpoints only; ``auto``: as detected from the file.
    prediction_type: Prediction | Literal["auto"] | None = None
    #: ``auto``: as guessed from the file.
    hints: Hints | Literal["auto"] | None = None
    #: The asset's, as the client knows it.
    revision: int | None = None


def _owners_prediction(asset: Asset, wanted: Prediction | Literal["auto"]) -> Prediction | None:
    """Raises InvalidAsset: a kind without one, or a file that says nothing."""
    if not KINDS[asset.kind].has_prediction_type:
        kinds = " or ".join(kinds_with(lambda traits: traits.has_prediction_type))
        raise InvalidAsset("prediction_type", f"only a {kinds} has one; this is a {asset.kind}")
    if wanted != "auto":
        return wanted
    reported = asset.report.get("prediction_type")
    if reported and reported["source"] == "owner" and "found" not in reported:
        raise InvalidAsset(
            "prediction_type", "the file states no type that is served; set one explicitly"
        )
    return None


class Editing:
    """Methods that take a principal authorize the call."""

    def __init__(
        self,
        records: AssetRecords,
        blobs: BlobRecords,
        store: ObjectStore,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._store = store
        self._now = now

    def check(self, principal: Principal, reference: str) -> None:
        """Raise AssetNotFound or Forbidden unless the principal may update."""
        find(self._records, principal, reference, "update", self._now())

    def update(self, principal: Principal, reference: str, change: Change) -> Asset:
        """Change an asset's metadata or visibility; never its bytes.

        Raises:
            AssetNotFound, InvalidAsset, NameTaken.
            Forbidden: the role may not share.
            Changed: another request changed it, since ``change.revision`` or all the time.
        """
        if change.name is not None:
            change = replace(change, name=normal_name(change.name))
            check_name(change.name or "")

        def apply(asset: Asset) -> Asset | None:
            nonlocal change
            if change.revision not in (None, asset.revision):
                raise Changed(asset.reference)
            changes = self._changes(principal, asset, change)
            if change.name is not None:
                self._check_series(principal, asset)
                renamed = self._records.rename(asset.id, change.name, revision=asset.revision)
                if renamed is None:
                    return None
                asset, change = renamed, replace(change, name=None, revision=None)
            return self._apply(asset, changes) if changes else asset

        return change_asset(self._records, principal, reference, "update", self._now(), apply)

    def set_preview(self, principal: Principal, reference: str, key: str) -> Asset:
        """Make the image under ``key`` the preview. Raises AssetNotFound, Changed."""

        def show(asset: Asset) -> Asset | None:
            shown = self._records.update(asset.id, {"preview": key}, revision=asset.revision)
            if shown is not None and asset.preview and asset.preview != key:
                self._drop_preview(asset.preview)
            return shown

        return change_asset(self._records, principal, reference, "update", self._now(), show)

    def _apply(self, asset: Asset, changes: AssetChanges) -> Asset | None:
        if asset.preview and "visibility" in changes:
            changes["preview"] = self._moved_preview(asset)
        applied = self._records.update(asset.id, changes, revision=asset.revision)
        if "preview" in changes:
            unused = changes["preview"] if applied is None else asset.preview
            if unused:
                self._drop_preview(unused)
        return applied

    def _changes(self, principal: Principal, asset: Asset, change: Change) -> AssetChanges:
        changes = AssetChanges()
        if change.description is not None:
            changes["description"] = change.description
        if change.trigger_words is not None:
            changes["trigger_words"] = tuple(change.trigger_words)
        if change.tags is not None:
            changes["tags"] = tuple(change.tags)
        if change.license is not None:
            changes["license"] = change.license
        if change.prediction_type is not None:
            changes["prediction_type"] = _owners_prediction(asset, change.prediction_type)
        if change.hints is not None:
            if not KINDS[asset.kind].has_file:
                raise InvalidAsset(
                    "hints", f"the text of a {asset.kind} is its version's: make a new version"
                )
            changes["hints"] = None if change.hints == "auto" else change.hints
        if change.visibility is not None or change.shared_with is not None:
            visibility = change.visibility or asset.visibility
            shared_with = asset.shared_with if change.shared_with is None else change.shared_with
            changes["visibility"] = checked_visibility(principal, visibility, shared_with)
            changes["shared_with"] = tuple(sorted(set(shared_with)))
        if change.expires_at_s is not None:
            changes["expires_at_s"] = change.expires_at_s or None
            check_expiry(changes["expires_at_s"], self._now())
        return changes

    def _drop_preview(self, key: str) -> None:
        self._blobs.unkeep([key])
        self._store.delete(key)

    def _moved_preview(self, asset: Asset) -> str | None:
        """A new key ends old URLs, even those that the store signed."""
        if asset.preview is None:
            return None
        try:
            data = read_bytes(self._store, asset.preview)
        except StoreError:
            if self._store.size(asset.preview) is not None:
                raise
            return None  # lost, or replaced meanwhile: then the change is repeated
        key = preview_key(asset.id, secrets.token_hex(32))
        put_bytes(self._store, key, data)
        self._blobs.keep(key, asset.tenant_id, len(data))
        return key

    def _check_series(self, principal: Principal, asset: Asset) -> None:
        query = Query(tenant_id=asset.tenant_id, name=asset.name, limit=MAX_VERSIONS)
        if not all(may(principal, "update", each) for each in self._records.list(query).assets):
            raise InvalidAsset(
                "name",
                "some versions belong to other members; ask an owner of the organisation to rename",
            )
