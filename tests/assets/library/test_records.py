"""The asset database's contract, on SQLite and, if installed, PostgreSQL."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from assets.asset import Asset
from assets.content import Blob
from assets.errors import InvalidAsset, NameTaken, QuotaExceeded
from assets.ids import is_asset_id, new_asset_id
from assets.library.records import Query
from assets.sql.blobs import SqlBlobRecords
from assets.sql.records import SqlAssetRecords
from assets.sql.search_index import WordRow, search_terms


@pytest.fixture
def records(database: Engine) -> SqlAssetRecords:
    return SqlAssetRecords(database)


@pytest.fixture
def blobs(database: Engine) -> SqlBlobRecords:
    return SqlBlobRecords(database)


def asset(**changes: Any) -> Asset:
    first = Asset(
        id=new_asset_id(),
        tenant_id=new_asset_id(),
        owner="acme",
        name="style",
        kind="lora",
        created_at_s=1.5,
        trigger_words=("x",),
        parts={"lora": Blob("k", "s", 5)},
    )
    return replace(first, **changes)


def test_added_asset_is_found(records: SqlAssetRecords) -> None:
    first_asset = asset(owner=new_asset_id())
    assert records.add(first_asset) == first_asset
    assert records.get(first_asset.id) == first_asset
    assert records.find(first_asset.tenant_id, "style") == first_asset
    assert records.find("other", "style") is None
    assert records.find_foreign(first_asset.owner, first_asset.name) is None
    assert is_asset_id(first_asset.id)
    public = records.update(first_asset.id, {"visibility": "public"})
    assert records.find_foreign(first_asset.owner, first_asset.name) == public


def test_live_names_are_unique_per_tenant(records: SqlAssetRecords) -> None:
    first_asset = asset()
    records.add(first_asset)
    with pytest.raises(NameTaken):
        records.add(replace(first_asset, id=new_asset_id()))
    records.add(asset())
    records.update(first_asset.id, {"status": "deleted", "deleted_at_s": 2.0})
    assert records.add(replace(first_asset, id=new_asset_id())).version == 2


def test_name_means_its_newest_ready_version(records: SqlAssetRecords) -> None:
    first = records.add(asset(status="ready"))
    second = records.add(replace(first, id=new_asset_id(), status="uploaded"), new_version=True)
    assert second.reference == "style@2"
    tenant = first.tenant_id
    assert records.find(tenant, "style") == first
    assert records.find(tenant, "style", 2) == second
    assert records.find(tenant, "style", 3) is None
    second = records.update(second.id, {"status": "ready"}) or second
    assert records.find(tenant, "style") == second
    records.update(second.id, {"status": "deleted", "deleted_at_s": 2.0})
    assert records.find(tenant, "style") == first
    assert records.find(tenant, "style", 2) is None
    # name@2 never means other bytes
    third = records.add(replace(first, id=new_asset_id()), new_version=True)
    assert third.version == 3


def test_rename_renames_every_version(records: SqlAssetRecords) -> None:
    first = records.add(asset(status="ready"))
    second = records.add(replace(first, id=new_asset_id()), new_version=True)
    other = records.add(replace(first, id=new_asset_id(), name="other"))
    with pytest.raises(NameTaken):
        records.rename(first.id, "other")
    assert records.find(first.tenant_id, "style") == second
    records.update(other.id, {"status": "deleted", "deleted_at_s": 2.0})
    renamed = records.rename(second.id, "other")
    assert renamed is not None
    assert renamed.reference == "other@3"  # other@1 meant other bytes
    assert records.find(first.tenant_id, "other", 2) == replace(first, name="other", version=2)
    assert records.find(first.tenant_id, "style") is None
    assert records.list(Query(tenant_id=first.tenant_id, text="other")).total == 2
    assert records.rename("nothing", "x") is None


def test_concurrent_adds_get_distinct_versions(records: SqlAssetRecords) -> None:
    first_asset = asset()

    def add(_: int) -> int:
        return records.add(
            replace(first_asset, id=new_asset_id()), new_version=True, most=12
        ).version

    with ThreadPoolExecutor(8) as pool:
        outcomes = [pool.submit(add, index) for index in range(20)]
    failed = [o.exception() for o in outcomes if o.exception()]
    assert all(isinstance(error, QuotaExceeded) for error in failed), failed
    assert sorted(o.result() for o in outcomes if not o.exception()) == list(range(1, 13))


def test_shared_asset_is_found_by_listed_tenants(records: SqlAssetRecords) -> None:
    owner, reader = new_asset_id(), new_asset_id()
    first_asset = asset(owner=owner, visibility="shared", shared_with=("a", reader), status="ready")
    records.add(first_asset)
    assert records.get(first_asset.id) == first_asset
    assert records.find_foreign(owner, "style", reader=reader) == first_asset
    assert records.find_foreign(owner, "style", reader="stranger") is None
    assert records.find_foreign(owner, "style") is None
    assert [a.id for a in records.list(Query(shared_with=reader)).assets] == [first_asset.id]
    records.update(first_asset.id, {"shared_with": ("a",)})
    assert records.list(Query(shared_with=reader)).total == 0
    records.update(first_asset.id, {"visibility": "organisation"})
    assert records.find_foreign(owner, "style", reader="a") is None


def test_update_compares_the_expected_status(records: SqlAssetRecords) -> None:
    first_asset = asset(status="uploaded")
    records.add(first_asset)
    assert records.update(first_asset.id, {"status": "ready"}, expect=("ready_to_upload",)) is None
    changed = records.update(first_asset.id, {"status": "ready"}, expect=("uploaded",))
    assert changed is not None
    assert changed.status == "ready"
    assert records.update("nothing", {"status": "ready"}) is None


def test_uses_are_counted(records: SqlAssetRecords) -> None:
    first_asset = records.add(asset())
    for _ in range(3):
        records.used([first_asset.id])
    found = records.get(first_asset.id)
    assert found is not None
    assert found.uses == 3
    assert found.last_used_at_s is not None


def test_pages_are_stable_and_have_the_total(records: SqlAssetRecords) -> None:
    tenant = new_asset_id()
    for index in range(7):
        kind = "lora" if index % 2 else "vae"
        records.add(asset(tenant_id=tenant, name=f"n{index}", kind=kind, id=new_asset_id(index)))
    pages = [records.list(Query(tenant_id=tenant, limit=3, offset=o)) for o in (0, 3, 6)]
    names = [a.name for page in pages for a in page.assets]
    assert names == [f"n{index}" for index in range(7)]
    assert {page.total for page in pages} == {7}
    assert [page.has_more for page in pages] == [True, True, False]
    assert records.list(Query(tenant_id=tenant, kinds=["vae"])).total == 4
    assert records.list(Query(tenant_id=tenant, name="n3")).total == 1
    # Earlier deletions do not change the next page.
    last = pages[0].assets[-1].id
    records.update(pages[0].assets[0].id, {"status": "deleted", "deleted_at_s": 1.0})
    after = records.list(Query(tenant_id=tenant, limit=3, after=last))
    assert [a.name for a in after.assets] == ["n3", "n4", "n5"]
    assert (after.total, after.has_more) == (6, True)


def test_listing_excludes_assets_private_to_other_members(records: SqlAssetRecords) -> None:
    tenant = new_asset_id()
    for name, by, visibility in (
        ("a", "ann", "private"), ("b", "bob", "private"), ("c", "bob", "organisation"),
    ):  # fmt: skip
        records.add(asset(tenant_id=tenant, name=name, created_by=by, visibility=visibility))
    seen = records.list(Query(tenant_id=tenant, member_id="ann")).assets
    assert [a.name for a in seen] == ["a", "c"]
    assert records.list(Query(tenant_id=tenant)).total == 3


def test_stale_and_expired(records: SqlAssetRecords) -> None:
    first_asset = asset(status="uploaded", expires_at_s=50.0)
    records.add(first_asset)
    assert first_asset.id in {a.id for a in records.stale("uploaded", 1e12)}
    assert first_asset.id not in {a.id for a in records.stale("uploaded", 0.0)}
    assert first_asset.id in {a.id for a in records.expired(50.0)}
    assert first_asset.id not in {a.id for a in records.expired(49.0)}
    records.update(first_asset.id, {"status": "deleted", "deleted_at_s": 60.0})
    assert first_asset.id not in {a.id for a in records.expired(50.0)}


def blob() -> Blob:
    return Blob(new_asset_id(), "sha", 100)


def test_blob_is_live_while_a_live_asset_refers_to_it(
    records: SqlAssetRecords, blobs: SqlBlobRecords
) -> None:
    tenant, shared, lone = new_asset_id(), blob(), blob()
    first_asset = records.add(
        asset(tenant_id=tenant, name="one", parts={"unet": shared, "vae": lone})
    )
    second_asset = records.add(asset(tenant_id=tenant, name="two", parts={"unet": shared}))
    keys = [shared.key, lone.key, "unknown"]
    assert blobs.live(keys) == {shared.key, lone.key}
    assert blobs.stored_bytes(tenant) == 200
    records.update(first_asset.id, {"status": "deleted", "deleted_at_s": 1.0})
    assert blobs.live(keys) == {shared.key}
    assert blobs.stored_bytes(tenant) == 200  # it is restorable
    later = 1e12
    assert lone.key not in blobs.garbage(later)
    records.update(first_asset.id, {"parts": {}})
    assert blobs.stored_bytes(tenant) == 100
    assert lone.key in blobs.garbage(later)
    assert shared.key not in blobs.garbage(later)
    assert not blobs.mark_for_deletion(shared.key, later)
    assert blobs.mark_for_deletion(lone.key, later)
    assert not blobs.claim(lone)
    blobs.forget(lone.key)
    assert blobs.known(keys) == {shared.key}
    assert blobs.claim(lone)
    records.update(second_asset.id, {"parts": {"unet": lone}})
    assert blobs.live(keys) == {lone.key}


def test_one_collector_marks_a_blob(blobs: SqlBlobRecords) -> None:
    first = blob()
    assert blobs.claim(first)
    later = 1e11
    # Older than ``later``, the first mark counts as a dead collector's.
    assert [blobs.mark_for_deletion(first.key, later) for _ in range(2)] == [True, True]
    soon = time.time() + 60.0
    second = blob()
    assert blobs.claim(second)
    assert blobs.mark_for_deletion(second.key, soon)
    assert not blobs.mark_for_deletion(second.key, time.time() - 60.0)


def test_private_version_does_not_hide_older_versions(records: SqlAssetRecords) -> None:
    first = records.add(asset(status="ready", visibility="organisation", created_by="ann"))
    second = replace(first, id=new_asset_id(), visibility="private", created_by="bob")
    second = records.add(second, new_version=True)
    tenant = first.tenant_id
    assert records.find(tenant, "style") == second
    assert records.find(tenant, "style", member_id="bob") == second
    assert records.find(tenant, "style", member_id="ann") == first
    # The old name continues its numbers.
    records.rename(first.id, "moved")
    assert records.add(replace(first, id=new_asset_id())).version == 3


def test_claimed_blob_is_not_garbage(blobs: SqlBlobRecords) -> None:
    first = blob()
    assert blobs.claim(first)
    assert first.key not in blobs.garbage(1.0)
    assert not blobs.mark_for_deletion(first.key, 1.0)
    blobs.forget(first.key)
    assert blobs.known([first.key]) == {first.key}
    with ThreadPoolExecutor(8) as pool:
        fresh = blob()
        assert all(pool.map(lambda _: blobs.claim(fresh), range(16)))


def test_upload_in_ingest_counts_as_stored(records: SqlAssetRecords, blobs: SqlBlobRecords) -> None:
    first_asset = records.add(asset(status="uploaded", size_bytes=7, parts={}))
    assert blobs.stored_bytes(first_asset.tenant_id) == 7


def test_deleted_asset_is_not_searchable_until_restored(records: SqlAssetRecords) -> None:
    first_asset = records.add(asset(status="ready", description="a heron", tags=("bird",)))

    def matches() -> int:
        query = Query(tenant_id=first_asset.tenant_id, text="heron", tags=["bird"])
        return records.list(query).total

    def words() -> int:
        with Session(records._engine) as session:
            count = (
                select(func.count()).select_from(WordRow).where(WordRow.asset_id == first_asset.id)
            )
            return session.scalar(count) or 0

    assert matches() == 1
    records.update(first_asset.id, {"status": "deleted", "deleted_at_s": 1.0})
    assert (matches(), words()) == (0, 0)
    records.update(first_asset.id, {"status": "ready", "deleted_at_s": None})
    assert matches() == 1


def test_search_terms_omit_prefixes_of_other_terms() -> None:
    assert search_terms("S st style STYLES other", ["s", "st"]) == ["styles", "other", "#s", "#st"]
    with pytest.raises(InvalidAsset, match="8 different"):
        search_terms("a b c d e f g h", ["i"])


def test_purge_keeps_only_the_version_number(
    records: SqlAssetRecords, blobs: SqlBlobRecords
) -> None:
    first_asset = records.add(asset(status="ready", description="a heron", parts={"lora": blob()}))
    assert not records.purge(first_asset.id)
    records.update(first_asset.id, {"status": "deleted", "deleted_at_s": 1.0})
    assert first_asset.id in {each.id for each in records.forgotten(2.0)}
    assert records.purge(first_asset.id)
    assert first_asset.id not in {each.id for each in records.forgotten(2.0)}
    kept = records.get(first_asset.id)
    assert kept is not None
    assert (kept.description, kept.parts, kept.size_bytes) == ("", {}, 0)
    assert blobs.stored_bytes(first_asset.tenant_id) == 0
    second_asset = records.add(replace(first_asset, id=new_asset_id()))
    assert second_asset.version == 2
    records.update(second_asset.id, {"status": "deleted", "deleted_at_s": 1.0})
    assert records.purge(second_asset.id)
    assert records.get(first_asset.id) is None  # only the last version's row stays
    assert records.add(replace(first_asset, id=new_asset_id())).version == 3
    uninspected = records.add(
        replace(first_asset, id=new_asset_id(), name="never", parts={}, report={})
    )
    records.update(uninspected.id, {"status": "deleted", "deleted_at_s": 1.0})
    assert records.purge(uninspected.id)
    assert records.get(uninspected.id) is None
