"""Changes of one asset at the same time: none is lost unnoticed."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from assets.asset import Asset
from assets.errors import AssetNotFound, Changed
from assets.ids import new_asset_id
from assets.library.editing import Change
from assets.library.library import Library
from assets.library.uploads import NewAsset
from assets.principal import Principal
from assets.sql.blobs import SqlBlobRecords
from assets.sql.records import SqlAssetRecords
from assets.storage.object_paths import part_key, preview_key, upload_key
from assets.storage.object_store import FsspecStore, put_bytes, read_bytes

ROUNDS = 10


@pytest.fixture
def library(database: Engine, tmp_path: Path) -> Library:
    store = FsspecStore(tmp_path.as_uri())
    return Library(SqlAssetRecords(database), SqlBlobRecords(database), store)


@pytest.fixture
def principal() -> Principal:
    return Principal(new_asset_id(), "acme")


def added(library: Library, principal: Principal) -> Asset:
    return library._records.add(
        Asset(
            id=new_asset_id(), tenant_id=principal.tenant_id, owner="acme",
            name=f"style-{secrets.token_hex(4)}", kind="lora", created_at_s=0.0, status="ready",
        )
    )  # fmt: skip


def test_changes_of_several_fields_at_once_all_remain(
    library: Library, principal: Principal
) -> None:
    for _ in range(ROUNDS):
        asset = added(library, principal)
        changes = [
            Change(description="a heron"), Change(tags=["bird"]), Change(trigger_words=["hrn"]),
            Change(license="MIT"), Change(visibility="organisation"),
            Change(name=asset.name + "-2"),
        ]  # fmt: skip
        with ThreadPoolExecutor(len(changes)) as pool:
            done = [
                pool.submit(library.editing.update, principal, asset.id, change)
                for change in changes
            ]
            assert all(future.result() for future in done)
        now = library.get(principal, asset.id)
        assert (now.description, now.tags, now.trigger_words, now.license, now.visibility) == (
            "a heron", ("bird",), ("hrn",), "MIT", "organisation",
        )  # fmt: skip
        assert now.name == asset.name + "-2"
        assert now.revision >= len(changes)


def test_a_preview_beside_a_change_of_visibility(library: Library, principal: Principal) -> None:
    """A change of visibility moves the preview's file. It must not restore the preview that another
    request replaced."""
    for _ in range(ROUNDS):
        asset = added(library, principal)
        first, second = (preview_key(asset.id, secrets.token_hex(32)) for _ in range(2))
        for key, data in ((first, b"first"), (second, b"second")):
            put_bytes(library.editing._store, key, data)
        library.editing.set_preview(principal, asset.id, first)
        with ThreadPoolExecutor(2) as pool:
            shown = pool.submit(library.editing.set_preview, principal, asset.id, second)
            changed = pool.submit(
                library.editing.update, principal, asset.id, Change(visibility="public")
            )
            shown.result(), changed.result()
        now = library.get(principal, asset.id)
        assert now.visibility == "public"
        assert now.preview is not None
        assert read_bytes(library.editing._store, now.preview) == b"second"
        stored = [
            each.key for each in library.editing._store.list("previews/") if asset.id in each.key
        ]
        assert stored == [now.preview]


def test_a_change_of_a_known_revision(library: Library, principal: Principal) -> None:
    asset = added(library, principal)
    changed = library.editing.update(
        principal, asset.id, Change(license="MIT", revision=asset.revision)
    )
    with pytest.raises(Changed):
        library.editing.update(principal, asset.id, Change(license="GPL", revision=asset.revision))
    renamed = library.editing.update(
        principal, asset.id, Change(name="other", tags=["t"], revision=changed.revision)
    )
    assert (renamed.name, renamed.tags, renamed.license) == ("other", ("t",), "MIT")


def test_a_change_while_an_upload_is_assembled(
    library: Library, principal: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = library.uploads
    begun = uploads.create(principal, NewAsset("large", "lora", size_bytes=5))
    assert begun.upload is not None
    parts = uploads._parts
    put_bytes(library.editing._store, part_key(upload_key(begun.id), begun.upload.id, 1), b"bytes")
    finish = parts.finish

    def change_and_finish(*arguments: Any) -> None:
        library.editing.update(principal, begun.id, Change(license="MIT"))
        finish(*arguments)

    monkeypatch.setattr(parts, "finish", change_and_finish)
    done = uploads.complete(principal, begun.id)
    assert (done.status, done.license, done.size_bytes) == ("uploaded", "MIT", 5)


def test_deletion_beside_a_change(library: Library, principal: Principal) -> None:
    for _ in range(ROUNDS):
        asset = added(library, principal)
        with ThreadPoolExecutor(2) as pool:
            deleted = pool.submit(library.removal.delete, principal, asset.id)
            changed = pool.submit(
                library.editing.update, principal, asset.id, Change(license="MIT")
            )
            assert deleted.result().is_deleted
            error = changed.exception()
        assert error is None or isinstance(error, AssetNotFound)
        with pytest.raises(AssetNotFound):
            library.get(principal, asset.id)
