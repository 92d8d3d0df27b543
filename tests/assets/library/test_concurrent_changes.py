"""Changes of one asset at the same time: none is lost unnoticed."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from assets.asset import Asset
from assets.errors import AssetNotFound, Changed, InvalidAsset, StoreUnavailable
from assets.ids import new_asset_id
from assets.library.editing import Change
from assets.library.library import Library
from assets.library.reconcile import Reconciler
from assets.library.uploads import ASSEMBLY_S, NewAsset
from assets.principal import Principal
from assets.sql.blobs import SqlBlobRecords
from assets.sql.records import SqlAssetRecords
from assets.storage.multipart import open_parts
from assets.storage.object_paths import part_key, preview_key, upload_key
from assets.storage.object_store import FsspecStore, put_bytes, read_bytes

ROUNDS = 10


@pytest.fixture
def store(tmp_path: Path) -> FsspecStore:
    return FsspecStore(tmp_path.as_uri())


@pytest.fixture
def library(database: Engine, store: FsspecStore) -> Library:
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


def test_a_preview_beside_a_change_of_visibility(
    library: Library, store: FsspecStore, principal: Principal
) -> None:
    """A change of visibility moves the preview's file. It must not restore the preview that another
    request replaced."""
    for _ in range(ROUNDS):
        asset = added(library, principal)
        first, second = (preview_key(asset.id, secrets.token_hex(32)) for _ in range(2))
        for key, data in ((first, b"first"), (second, b"second")):
            put_bytes(store, key, data)
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
        assert read_bytes(store, now.preview) == b"second"
        stored = [each.key for each in store.list("previews/") if asset.id in each.key]
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
    library: Library, store: FsspecStore, principal: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = library.uploads
    begun = uploads.create(principal, NewAsset("large", "lora", size_bytes=5))
    assert begun.upload is not None
    parts = uploads._parts
    put_bytes(store, part_key(upload_key(begun.id), begun.upload.id, 1), b"bytes")
    finish = parts.finish

    def change_and_finish(*arguments: Any) -> None:
        library.editing.update(principal, begun.id, Change(license="MIT"))
        finish(*arguments)

    monkeypatch.setattr(parts, "finish", change_and_finish)
    done = uploads.complete(principal, begun.id)
    assert (done.status, done.license, done.size_bytes) == ("uploaded", "MIT", 5)


def test_an_uploads_status_only_moves_forward(
    library: Library, store: FsspecStore, principal: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed assembly is repeated; while one runs, no other does, and no part arrives."""
    uploads = library.uploads
    begun = uploads.create(principal, NewAsset("large", "lora", size_bytes=5))
    assert begun.upload is not None
    part = part_key(upload_key(begun.id), begun.upload.id, 1)
    put_bytes(store, part, b"bytes")
    parts = uploads._parts
    finish = parts.finish
    seen: list[str] = []

    def fail(*arguments: Any) -> None:
        seen.append(library.get(principal, begun.id).status)
        with pytest.raises(InvalidAsset, match="another call"):
            uploads.complete(principal, begun.id)
        with pytest.raises(AssetNotFound):
            uploads.begin(part, 5)
        for call in (uploads.abort, uploads.state):
            with pytest.raises(AssetNotFound):
                call(principal, begun.id)
        raise StoreUnavailable("away")

    monkeypatch.setattr(parts, "finish", fail)
    with pytest.raises(StoreUnavailable):
        uploads.complete(principal, begun.id)
    seen.append(library.get(principal, begun.id).status)
    assert uploads.state(principal, begun.id).missing == []
    assert uploads.begin(part, 5) == 5  # parts may be sent again
    monkeypatch.setattr(parts, "finish", finish)
    seen.append(uploads.complete(principal, begun.id).status)
    assert seen == ["uploading", "uploading", "uploaded"]


def test_a_dead_assembly_is_repeated_when_its_claim_ends(
    database: Engine, store: FsspecStore, principal: Principal
) -> None:
    now_s = [1_000.0]
    records, blobs = SqlAssetRecords(database), SqlBlobRecords(database)
    library = Library(records, blobs, store, now=lambda: now_s[0])
    begun = library.uploads.create(principal, NewAsset("large", "lora", size_bytes=5))
    assert begun.upload is not None
    put_bytes(store, part_key(upload_key(begun.id), begun.upload.id, 1), b"bytes")
    claimed = replace(begun.upload, claimed_until_s=now_s[0] + ASSEMBLY_S)
    records.update(begun.id, {"status": "uploading", "upload": claimed})  # then its process died
    with pytest.raises(InvalidAsset, match="another call"):
        library.uploads.complete(principal, begun.id)
    now_s[0] += ASSEMBLY_S + 1
    assert library.uploads.complete(principal, begun.id).status == "uploaded"


def test_an_assembled_upload_lacks_no_part(
    library: Library, store: FsspecStore, principal: Principal
) -> None:
    """Its process died before it recorded it."""
    begun = library.uploads.create(principal, NewAsset("large", "lora", size_bytes=5))
    put_bytes(store, upload_key(begun.id), b"bytes")
    state = library.uploads.state(principal, begun.id)
    assert (state.missing, state.part_count) == ([], 1)


def test_an_abort_beside_a_completion(
    library: Library, store: FsspecStore, principal: Principal
) -> None:
    """One of them wins: no asset that is uploaded is deleted."""
    for index in range(ROUNDS):
        begun = library.uploads.create(principal, NewAsset(f"large-{index}", "lora", size_bytes=5))
        assert begun.upload is not None
        put_bytes(store, part_key(upload_key(begun.id), begun.upload.id, 1), b"bytes")
        with ThreadPoolExecutor(2) as pool:
            done = [
                pool.submit(call, principal, begun.id)
                for call in (library.uploads.complete, library.uploads.abort)
            ]
        failed = [call.exception() for call in done]
        assert sum(error is None for error in failed) == 1, failed
        assert all(isinstance(error, AssetNotFound | InvalidAsset | None) for error in failed)
        if failed[1] is not None:
            assert library.get(principal, begun.id).status == "uploaded"


def test_an_upload_that_an_earlier_build_assembles(
    database: Engine, store: FsspecStore, library: Library, principal: Principal
) -> None:
    """It claims by the status alone; the reconciler frees what it left."""
    records, blobs = SqlAssetRecords(database, lambda: 0.0), SqlBlobRecords(database)
    begun = library.uploads.create(principal, NewAsset("large", "lora", size_bytes=5))
    assert begun.upload is not None
    put_bytes(store, part_key(upload_key(begun.id), begun.upload.id, 1), b"bytes")
    records.update(begun.id, {"status": "uploading"})
    with pytest.raises(InvalidAsset, match="another call"):
        library.uploads.complete(principal, begun.id)
    Reconciler(records, blobs, store, open_parts(store), {})._expire_uploads()
    assert library.uploads.complete(principal, begun.id).status == "uploaded"


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
