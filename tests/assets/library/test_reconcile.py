"""Records and bytes come together again, from both sides, and nothing of anybody's is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from assets.asset import Asset
from assets.content import Blob
from assets.errors import StoreError
from assets.ids import new_asset_id
from assets.library.library import KEPT_DELETED_S, LOST, Library
from assets.library.reconcile import GRACE_S, Reconciler
from assets.principal import Principal
from assets.sql.blobs import SqlBlobRecords
from assets.sql.records import SqlAssetRecords
from assets.storage.multipart import open_parts
from assets.storage.object_paths import blob_key, part_key, preview_key, stored_blob_key, upload_key
from assets.storage.object_store import FsspecStore, put_bytes, read_bytes
from serving.bootstrap.database import open_database
from serving.settings import Settings

ME = Principal("t", "me")
LATER_S = 2 * GRACE_S


@dataclass
class House:
    store: FsspecStore
    records: SqlAssetRecords
    blobs: SqlBlobRecords
    reconcile: Callable[[float], dict[str, int]]

    def put(self, **fields: Any) -> Asset:
        """A ready asset, unless something else is said with one blob of its own."""
        blob = Blob("p" + new_asset_id(), "sha", 5)
        if "parts" not in fields:
            put_bytes(self.store, blob_key(blob), b"12345")
        fields = {"status": "ready", "name": new_asset_id(), "parts": {"lora": blob}, **fields}
        return self.records.add(
            Asset(new_asset_id(), "t", "me", kind="lora", created_at_s=time.time(), **fields)
        )


@pytest.fixture(params=["directory", "s3"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    if request.param == "directory":
        store = FsspecStore(f"file://{tmp_path}/store")
    else:
        server = request.getfixturevalue("s3_server")
        settings = Settings(store_url=server["url"], store_options=server["options"])
        options = settings.resolved_store_options
        store = FsspecStore(f"{server['url']}/{new_asset_id()}", **options)
    database = open_database(f"sqlite:///{tmp_path}/r.db")
    records, blobs = SqlAssetRecords(database), SqlBlobRecords(database)

    def reconcile(ahead_s: float) -> dict[str, int]:
        run = Reconciler(records, blobs, store, now=lambda: time.time() + ahead_s).run()
        return {deed: count for deed, count in run.items() if count}

    return House(store, records, blobs, reconcile)


def test_what_is_as_it_should_be_stays(house: House) -> None:
    asset = house.put()
    waiting = house.put(status="uploaded", parts={})
    put_bytes(house.store, upload_key(waiting.id), b"upload")
    pictured = house.put()
    preview = preview_key(pictured.id, "f" * 64)
    put_bytes(house.store, preview, b"png")
    house.records.update(pictured.id, {"data": {"preview": preview}})
    before = {stored.key for stored in house.store.list("")}
    for ahead_s in (0.0, LATER_S):
        assert house.reconcile(ahead_s) == {}
    assert {stored.key for stored in house.store.list("")} == before
    assert house.records.get(asset.id) == asset


def test_bytes_without_a_record_go_once_they_are_old(house: House) -> None:
    orphans = {
        stored_blob_key("p" + new_asset_id()): "orphan_blobs_removed",
        upload_key(new_asset_id()): "orphan_uploads_removed",
        upload_key(house.put().id): "orphan_uploads_removed",  # which is ready by now
        preview_key(new_asset_id(), "0" * 64): "orphan_previews_removed",
    }
    for key in orphans:
        put_bytes(house.store, key, b"left by a crash")
    assert house.reconcile(0.0) == {}  # it may be somebody's work in progress
    done = house.reconcile(LATER_S)
    assert done == {
        "orphan_blobs_removed": 1, "orphan_uploads_removed": 2, "orphan_previews_removed": 1,
    }  # fmt: skip
    assert not {stored.key for stored in house.store.list("")} & set(orphans)
    assert house.reconcile(LATER_S) == {}


def test_a_half_written_file_of_a_process_that_died_goes(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "uploads"
    if not (tmp_path / "store").exists():
        pytest.skip("only a directory store writes under other names")
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f".{new_asset_id()}.abcd.part"
    half.write_bytes(b"half")
    assert house.reconcile(LATER_S) == {"orphan_uploads_removed": 1}
    assert not half.exists()


def test_a_record_without_bytes_says_so(house: House) -> None:
    lost, kept = house.put(), house.put()
    house.store.delete(blob_key(lost.parts["lora"]))
    assert house.reconcile(0.0) == {"assets_lost": 1}
    found = house.records.get(lost.id)
    assert found is not None
    assert (found.status, found.status_details) == ("error", LOST)
    assert house.records.get(kept.id) == kept
    assert house.reconcile(0.0) == {}


def test_a_store_that_is_away_condemns_nothing(house: House) -> None:
    assets = [house.put() for _ in range(3)]
    stored = {
        blob_key(a.parts["lora"]): read_bytes(house.store, blob_key(a.parts["lora"]))
        for a in assets
    }
    for key in stored:
        house.store.delete(key)
    assert house.reconcile(0.0) == {}
    assert [house.records.get(a.id) for a in assets] == assets
    # One that is lost among many is; and is found again when its bytes are back.
    for key in list(stored)[1:]:
        put_bytes(house.store, key, stored[key])
    assert house.reconcile(0.0) == {"assets_lost": 1}
    key = next(iter(stored))
    put_bytes(house.store, key, stored[key])
    assert house.reconcile(0.0) == {"assets_found": 1}
    assert house.records.get(assets[0].id) == assets[0]


def test_an_import_that_takes_long_is_left_alone(house: House) -> None:
    coming = house.put(status="uploaded", parts={}, data={"url": "https://x"})
    parts = open_parts(house.store)
    upload_id = parts.begin(upload_key(coming.id))
    url = parts.signed_put(upload_key(coming.id), upload_id, 1, 60)
    if url is None:
        put_bytes(house.store, part_key(upload_key(coming.id), upload_id, 1), b"x")
    else:
        httpx.put(url, content=b"x").raise_for_status()
    assert house.reconcile(2 * LATER_S) == {}
    assert [b.upload_id for b in parts.begun()] == [upload_id]
    house.records.update(coming.id, {"status": "rejected"})
    assert house.reconcile(2 * LATER_S) == {"part_uploads_aborted": 1}
    assert list(parts.begun()) == []


def test_a_deleted_asset_keeps_its_bytes_for_a_week_and_no_longer(house: House) -> None:
    library = Library(house.records, house.blobs, house.store)
    asset, twin = house.put(), house.put()
    house.store.delete(blob_key(twin.parts["lora"]))
    twin = house.records.update(twin.id, {"parts": asset.parts}) or twin
    path = blob_key(asset.parts["lora"])
    for gone in (asset, twin):
        library.delete(ME, gone.id)
    house.reconcile(KEPT_DELETED_S - 60.0)
    assert library.restore(ME, twin.id).parts == asset.parts
    done = house.reconcile(KEPT_DELETED_S + LATER_S)
    assert done["assets_purged"] == 1
    assert read_bytes(house.store, path) == b"12345"  # its twin's too
    library.delete(ME, twin.id)
    done = house.reconcile(KEPT_DELETED_S + LATER_S)
    assert (done["assets_purged"], done["blobs_collected"]) == (1, 1)
    with pytest.raises(StoreError):
        read_bytes(house.store, path)
    assert house.blobs.known([asset.parts["lora"].key]) == set()
    assert house.reconcile(KEPT_DELETED_S + LATER_S) == {}


def test_an_upload_that_nobody_completes_ends(house: House) -> None:
    waiting = house.put(status="ready_to_upload", parts={})
    put_bytes(house.store, upload_key(waiting.id), b"half of it")
    assert house.reconcile(LATER_S) == {}
    assert house.blobs.stored_bytes(waiting.tenant_id) == 10  # sent to the store, past us
    done = house.reconcile(25 * 3600.0)
    assert (done["uploads_expired"], done["orphan_uploads_removed"]) == (1, 1)
    assert house.records.get(waiting.id) is None


def test_a_store_lists_what_it_holds(house: House) -> None:
    put_bytes(house.store, "blobs/a/one", b"1")
    put_bytes(house.store, "blobs/b/two", b"22")
    put_bytes(house.store, "other/three", b"333")
    listed = {stored.key: stored for stored in house.store.list("blobs/")}
    assert {key: stored.size_bytes for key, stored in listed.items()} == {
        "blobs/a/one": 1, "blobs/b/two": 2,
    }  # fmt: skip
    assert all(abs(stored.changed_at_s - time.time()) < 60 for stored in listed.values())
    assert list(house.store.list("nothing/")) == []
    house.store.copy("blobs/b/two", "blobs/c/copy")
    assert read_bytes(house.store, "blobs/c/copy") == b"22"
    with pytest.raises(StoreError):
        house.store.copy("blobs/none", "blobs/c/none")


def test_nothing_is_armed_by_itself() -> None:
    from assets import failpoint

    assert failpoint._armed is None
    failpoint.reach("delete.recorded")
