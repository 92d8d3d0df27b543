"""Reconciliation of records and stored bytes loses nothing in use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from assets.asset import Asset, ImportSource
from assets.content import Blob
from assets.errors import StoreError
from assets.ids import new_asset_id
from assets.library.library import Library
from assets.library.reconcile import GRACE_S, Reconciler
from assets.library.removal import LOST, RESTORABLE_S
from assets.principal import Principal
from assets.sql.blobs import SqlBlobRecords
from assets.sql.records import SqlAssetRecords
from assets.storage.multipart import open_parts
from assets.storage.object_paths import blob_key, part_key, preview_key, stored_blob_key, upload_key
from assets.storage.object_store import FsspecStore, put_bytes, read_bytes
from serving.bootstrap.database import open_database
from serving.bootstrap.storage import store_options
from serving.settings import Settings

ME = Principal("t", "me")
LATER_S = 2 * GRACE_S


@dataclass
class Storage:
    store: FsspecStore
    records: SqlAssetRecords
    blobs: SqlBlobRecords
    reconcile: Callable[[float], dict[str, int]]

    def put(self, **fields: Any) -> Asset:
        blob = Blob("p" + new_asset_id(), "sha", 5)
        if "parts" not in fields:
            put_bytes(self.store, blob_key(blob), b"12345")
        fields = {"status": "ready", "name": new_asset_id(), "parts": {"lora": blob}, **fields}
        return self.records.add(
            Asset(new_asset_id(), "t", "me", kind="lora", created_at_s=time.time(), **fields)
        )


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "directory":
        store = FsspecStore(f"file://{tmp_path}/store")
    else:
        server = request.getfixturevalue("s3_server")
        settings = Settings(store_url=server["url"], store_options=server["options"])
        options = store_options(settings)
        store = FsspecStore(f"{server['url']}/{new_asset_id()}", **options)
    database = open_database(f"sqlite:///{tmp_path}/r.db")
    records, blobs = SqlAssetRecords(database), SqlBlobRecords(database)

    def reconcile(ahead_s: float) -> dict[str, int]:
        run = Reconciler(records, blobs, store, now=lambda: time.time() + ahead_s).run()
        return {action: count for action, count in run.items() if count}

    return Storage(store, records, blobs, reconcile)


def test_consistent_data_is_unchanged(storage: Storage) -> None:
    asset = storage.put()
    waiting = storage.put(status="uploaded", parts={})
    put_bytes(storage.store, upload_key(waiting.id), b"upload")
    with_preview = storage.put()
    preview = preview_key(with_preview.id, "f" * 64)
    put_bytes(storage.store, preview, b"png")
    storage.records.update(with_preview.id, {"preview": preview})
    before = {stored.key for stored in storage.store.list("")}
    for ahead_s in (0.0, LATER_S):
        assert storage.reconcile(ahead_s) == {}
    assert {stored.key for stored in storage.store.list("")} == before
    assert storage.records.get(asset.id) == asset


def test_orphans_are_removed_after_the_grace_period(storage: Storage) -> None:
    orphans = {
        stored_blob_key("p" + new_asset_id()): "orphan_blobs_removed",
        upload_key(new_asset_id()): "orphan_uploads_removed",
        upload_key(storage.put().id): "orphan_uploads_removed",
        preview_key(new_asset_id(), "0" * 64): "orphan_previews_removed",
    }
    for key in orphans:
        put_bytes(storage.store, key, b"left by a crash")
    assert storage.reconcile(0.0) == {}  # perhaps work in progress
    counts = storage.reconcile(LATER_S)
    assert counts == {
        "orphan_blobs_removed": 1, "orphan_uploads_removed": 2, "orphan_previews_removed": 1,
    }  # fmt: skip
    assert not {stored.key for stored in storage.store.list("")} & set(orphans)
    assert storage.reconcile(LATER_S) == {}


def test_unfinished_write_of_a_dead_process_is_removed(storage: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "uploads"
    if not (tmp_path / "store").exists():
        pytest.skip("only a directory store writes under other names")
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f".{new_asset_id()}.abcd.part"
    half.write_bytes(b"half")
    assert storage.reconcile(LATER_S) == {"orphan_uploads_removed": 1}
    assert not half.exists()


def test_asset_without_bytes_is_marked_lost(storage: Storage) -> None:
    lost, kept = storage.put(), storage.put()
    storage.store.delete(blob_key(lost.parts["lora"]))
    assert storage.reconcile(0.0) == {"assets_lost": 1}
    found = storage.records.get(lost.id)
    assert found is not None
    assert (found.status, found.status_details) == ("error", LOST)
    assert storage.records.get(kept.id) == kept
    assert storage.reconcile(0.0) == {}


def test_missing_store_marks_no_asset(storage: Storage) -> None:
    assets = [storage.put() for _ in range(3)]
    stored = {
        blob_key(a.parts["lora"]): read_bytes(storage.store, blob_key(a.parts["lora"]))
        for a in assets
    }
    for key in stored:
        storage.store.delete(key)
    assert storage.reconcile(0.0) == {}
    assert [storage.records.get(a.id) for a in assets] == assets
    # Marked missing, and found again when its bytes return.
    for key in list(stored)[1:]:
        put_bytes(storage.store, key, stored[key])
    assert storage.reconcile(0.0) == {"assets_lost": 1}
    key = next(iter(stored))
    put_bytes(storage.store, key, stored[key])
    assert storage.reconcile(0.0) == {"assets_found": 1}
    assert storage.records.get(assets[0].id) == assets[0]


def test_long_import_is_left_alone(storage: Storage) -> None:
    importing = storage.put(status="uploaded", parts={}, source=ImportSource("https://x"))
    parts = open_parts(storage.store)
    upload_id = parts.begin(upload_key(importing.id))
    url = parts.signed_put(upload_key(importing.id), upload_id, 1, 60)
    if url is None:
        put_bytes(storage.store, part_key(upload_key(importing.id), upload_id, 1), b"x")
    else:
        httpx2.put(url, content=b"x").raise_for_status()
    assert storage.reconcile(2 * LATER_S) == {}
    assert [b.upload_id for b in parts.begun()] == [upload_id]
    storage.records.update(importing.id, {"status": "rejected"})
    assert storage.reconcile(2 * LATER_S) == {"part_uploads_aborted": 1}
    assert list(parts.begun()) == []


def test_deleted_asset_keeps_its_bytes_for_a_week(storage: Storage) -> None:
    library = Library(storage.records, storage.blobs, storage.store)
    asset, twin = storage.put(), storage.put()
    storage.store.delete(blob_key(twin.parts["lora"]))
    twin = storage.records.update(twin.id, {"parts": asset.parts}) or twin
    path = blob_key(asset.parts["lora"])
    for deleted in (asset, twin):
        library.removal.delete(ME, deleted.id)
    storage.reconcile(RESTORABLE_S - 60.0)
    assert library.removal.restore(ME, twin.id).parts == asset.parts
    counts = storage.reconcile(RESTORABLE_S + LATER_S)
    assert counts["assets_purged"] == 1
    assert read_bytes(storage.store, path) == b"12345"  # the twin uses it
    library.removal.delete(ME, twin.id)
    counts = storage.reconcile(RESTORABLE_S + LATER_S)
    assert (counts["assets_purged"], counts["blobs_collected"]) == (1, 1)
    with pytest.raises(StoreError):
        read_bytes(storage.store, path)
    assert storage.blobs.known([asset.parts["lora"].key]) == set()
    assert storage.reconcile(RESTORABLE_S + LATER_S) == {}


def test_uncompleted_upload_expires(storage: Storage) -> None:
    waiting = storage.put(status="ready_to_upload", parts={})
    put_bytes(storage.store, upload_key(waiting.id), b"half of it")
    assert storage.reconcile(LATER_S) == {}
    assert storage.blobs.stored_bytes(waiting.tenant_id) == 10  # sent directly to the store
    counts = storage.reconcile(25 * 3600.0)
    assert (counts["uploads_expired"], counts["orphan_uploads_removed"]) == (1, 1)
    assert storage.records.get(waiting.id) is None


def test_store_lists_its_objects(storage: Storage) -> None:
    put_bytes(storage.store, "blobs/a/one", b"1")
    put_bytes(storage.store, "blobs/b/two", b"22")
    put_bytes(storage.store, "other/three", b"333")
    listed = {stored.key: stored for stored in storage.store.list("blobs/")}
    assert {key: stored.size_bytes for key, stored in listed.items()} == {
        "blobs/a/one": 1, "blobs/b/two": 2,
    }  # fmt: skip
    assert all(abs(stored.changed_at_s - time.time()) < 60 for stored in listed.values())
    assert list(storage.store.list("nothing/")) == []
    storage.store.copy("blobs/b/two", "blobs/c/copy")
    assert read_bytes(storage.store, "blobs/c/copy") == b"22"
    with pytest.raises(StoreError):
        storage.store.copy("blobs/none", "blobs/c/none")


def test_no_failpoint_is_armed_by_default() -> None:
    from assets import failpoint

    assert failpoint._armed is None
    failpoint.reach("delete.recorded")
