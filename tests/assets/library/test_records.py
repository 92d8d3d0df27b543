"""One body for every database: SQLite, and PostgreSQL where its server is installed."""

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
        data={"trigger_words": ["x"]},
        parts={"lora": Blob("k", "s", 5)},
    )
    return replace(first, **changes)


def test_what_is_added_is_found(records: SqlAssetRecords) -> None:
    one = asset(owner=new_asset_id())
    assert records.add(one) == one
    assert records.get(one.id) == one
    assert records.find(one.tenant_id, "style") == one
    assert records.find("other", "style") is None
    assert records.find_foreign(one.owner, one.name) is None
    assert is_asset_id(one.id)
    public = records.update(one.id, {"visibility": "public"})
    assert records.find_foreign(one.owner, one.name) == public


def test_a_live_name_is_taken_once_a_tenant(records: SqlAssetRecords) -> None:
    one = asset()
    records.add(one)
    with pytest.raises(NameTaken):
        records.add(replace(one, id=new_asset_id()))
    records.add(asset())  # another tenant
    records.update(one.id, {"status": "deleted", "deleted_at_s": 2.0})
    assert records.add(replace(one, id=new_asset_id())).version == 2


def test_a_name_means_its_newest_version_that_is_ready(records: SqlAssetRecords) -> None:
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
    # The number is not given again: name@2 never means other bytes.
    third = records.add(replace(first, id=new_asset_id()), new_version=True)
    assert third.version == 3


def test_a_rename_takes_every_version_along(records: SqlAssetRecords) -> None:
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


def test_arrivals_at_once_get_versions_of_their_own(records: SqlAssetRecords) -> None:
    one = asset()

    def add(_: int) -> int:
        return records.add(replace(one, id=new_asset_id()), new_version=True, most=12).version

    with ThreadPoolExecutor(8) as pool:
        outcomes = [pool.submit(add, index) for index in range(20)]
    failed = [o.exception() for o in outcomes if o.exception()]
    assert all(isinstance(error, QuotaExceeded) for error in failed), failed
    assert sorted(o.result() for o in outcomes if not o.exception()) == list(range(1, 13))


def test_what_is_shared_is_found_by_those_it_is_shared_with(records: SqlAssetRecords) -> None:
    owner, reader = new_asset_id(), new_asset_id()
    one = asset(owner=owner, visibility="shared", shared_with=("a", reader), status="ready")
    records.add(one)
    assert records.get(one.id) == one
    assert records.find_foreign(owner, "style", reader=reader) == one
    assert records.find_foreign(owner, "style", reader="stranger") is None
    assert records.find_foreign(owner, "style") is None
    assert [a.id for a in records.list(Query(shared_with=reader)).assets] == [one.id]
    records.update(one.id, {"shared_with": ("a",)})
    assert records.list(Query(shared_with=reader)).total == 0
    records.update(one.id, {"visibility": "organisation"})
    assert records.find_foreign(owner, "style", reader="a") is None


def test_update_expects(records: SqlAssetRecords) -> None:
    one = asset(status="uploaded")
    records.add(one)
    assert records.update(one.id, {"status": "ready"}, expect=("ready_to_upload",)) is None
    changed = records.update(one.id, {"status": "ready"}, expect=("uploaded",))
    assert changed is not None
    assert changed.status == "ready"
    assert records.update("nothing", {"status": "ready"}) is None


def test_uses_are_counted(records: SqlAssetRecords) -> None:
    one = records.add(asset())
    for _ in range(3):
        records.used([one.id])
    found = records.get(one.id)
    assert found is not None
    assert found.uses == 3
    assert found.last_used_at_s is not None


def test_pages_are_stable_and_count_everything(records: SqlAssetRecords) -> None:
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
    # What comes after an asset is the same whatever becomes of those before it.
    last = pages[0].assets[-1].id
    records.update(pages[0].assets[0].id, {"status": "deleted", "deleted_at_s": 1.0})
    after = records.list(Query(tenant_id=tenant, limit=3, after=last))
    assert [a.name for a in after.assets] == ["n3", "n4", "n5"]
    assert (after.total, after.has_more) == (6, True)


def test_a_listing_leaves_out_what_is_private_to_others(records: SqlAssetRecords) -> None:
    tenant = new_asset_id()
    for name, by, visibility in (
        ("a", "ann", "private"), ("b", "bob", "private"), ("c", "bob", "organisation"),
    ):  # fmt: skip
        records.add(asset(tenant_id=tenant, name=name, created_by=by, visibility=visibility))
    seen = records.list(Query(tenant_id=tenant, member_id="ann")).assets
    assert [a.name for a in seen] == ["a", "c"]
    assert records.list(Query(tenant_id=tenant)).total == 3


def test_stale_and_expired(records: SqlAssetRecords) -> None:
    one = asset(status="uploaded", expires_at_s=50.0)
    records.add(one)
    assert one.id in {a.id for a in records.stale("uploaded", 1e12)}
    assert one.id not in {a.id for a in records.stale("uploaded", 0.0)}
    assert one.id in {a.id for a in records.expired(50.0)}
    assert one.id not in {a.id for a in records.expired(49.0)}
    records.update(one.id, {"status": "deleted", "deleted_at_s": 60.0})
    assert one.id not in {a.id for a in records.expired(50.0)}


def blob() -> Blob:
    return Blob(new_asset_id(), "sha", 100)


def test_a_blob_is_live_as_long_as_any_asset_refers_to_it(
    records: SqlAssetRecords, blobs: SqlBlobRecords
) -> None:
    tenant, shared, lone = new_asset_id(), blob(), blob()
    one = records.add(asset(tenant_id=tenant, name="one", parts={"unet": shared, "vae": lone}))
    two = records.add(asset(tenant_id=tenant, name="two", parts={"unet": shared}))
    keys = [shared.key, lone.key, "unknown"]
    assert blobs.live(keys) == {shared.key, lone.key}
    assert blobs.stored_bytes(tenant) == 200  # each once
    records.update(one.id, {"status": "deleted", "deleted_at_s": 1.0})
    assert blobs.live(keys) == {shared.key}
    assert blobs.stored_bytes(tenant) == 200  # it can still be restored
    later = 1e12
    assert lone.key not in blobs.garbage(later)  # it can still be restored
    records.update(one.id, {"parts": {}})
    assert blobs.stored_bytes(tenant) == 100
    assert lone.key in blobs.garbage(later)
    assert shared.key not in blobs.garbage(later)
    assert not blobs.mark_for_deletion(shared.key, later)
    assert blobs.mark_for_deletion(lone.key, later)
    assert not blobs.claim(lone)  # while it is being taken
    blobs.forget(lone.key)
    assert blobs.known(keys) == {shared.key}
    assert blobs.claim(lone)
    records.update(two.id, {"parts": {"unet": lone}})
    assert blobs.live(keys) == {lone.key}


def test_one_collector_takes_a_piece_of_garbage(blobs: SqlBlobRecords) -> None:
    one = blob()
    assert blobs.claim(one)
    later = 1e11
    assert [blobs.mark_for_deletion(one.key, later) for _ in range(2)] == [
        True,
        True,
    ]  # the first is long dead
    soon = time.time() + 60.0
    two = blob()
    assert blobs.claim(two)
    assert blobs.mark_for_deletion(two.key, soon)
    assert not blobs.mark_for_deletion(two.key, time.time() - 60.0)


def test_a_private_version_hides_nothing_from_others(records: SqlAssetRecords) -> None:
    first = records.add(asset(status="ready", visibility="organisation", created_by="ann"))
    second = replace(first, id=new_asset_id(), visibility="private", created_by="bob")
    second = records.add(second, new_version=True)
    tenant = first.tenant_id
    assert records.find(tenant, "style") == second
    assert records.find(tenant, "style", member_id="bob") == second
    assert records.find(tenant, "style", member_id="ann") == first
    # A name that was renamed away is not given the same numbers again.
    records.rename(first.id, "moved")
    assert records.add(replace(first, id=new_asset_id())).version == 3


def test_what_was_claimed_just_now_is_no_garbage(blobs: SqlBlobRecords) -> None:
    one = blob()
    assert blobs.claim(one)
    assert one.key not in blobs.garbage(1.0)
    assert not blobs.mark_for_deletion(one.key, 1.0)
    blobs.forget(one.key)  # which only the doomed are
    assert blobs.known([one.key]) == {one.key}
    with ThreadPoolExecutor(8) as pool:
        fresh = blob()
        assert all(pool.map(lambda _: blobs.claim(fresh), range(16)))


def test_an_upload_in_inspection_counts(records: SqlAssetRecords, blobs: SqlBlobRecords) -> None:
    one = records.add(asset(status="uploaded", size_bytes=7, parts={}))
    assert blobs.stored_bytes(one.tenant_id) == 7


def test_a_deleted_asset_is_found_by_no_word_until_it_is_restored(records: SqlAssetRecords) -> None:
    one = records.add(asset(status="ready", description="a heron", data={"tags": ["bird"]}))

    def found() -> int:
        query = Query(tenant_id=one.tenant_id, text="heron", tags=["bird"])
        return records.list(query).total

    def words() -> int:
        with Session(records._engine) as session:
            mine = select(func.count()).select_from(WordRow).where(WordRow.asset_id == one.id)
            return session.scalar(mine) or 0

    assert found() == 1
    records.update(one.id, {"status": "deleted", "deleted_at_s": 1.0})
    assert (found(), words()) == (0, 0)
    records.update(one.id, {"status": "ready", "deleted_at_s": None})
    assert found() == 1


def test_a_search_asks_for_no_beginning_of_a_word_that_it_asks_for() -> None:
    assert search_terms("S st style STYLES other", ["s", "st"]) == ["styles", "other", "#s", "#st"]
    with pytest.raises(InvalidAsset, match="8 different"):
        search_terms("a b c d e f g h", ["i"])


def test_what_is_purged_leaves_its_number_and_no_more(
    records: SqlAssetRecords, blobs: SqlBlobRecords
) -> None:
    one = records.add(asset(status="ready", description="a heron", parts={"lora": blob()}))
    assert not records.purge(one.id)  # it is live
    records.update(one.id, {"status": "deleted", "deleted_at_s": 1.0})
    assert one.id in {each.id for each in records.forgotten(2.0)}
    assert records.purge(one.id)
    assert one.id not in {each.id for each in records.forgotten(2.0)}
    kept = records.get(one.id)
    assert kept is not None
    assert (kept.description, kept.parts, kept.size_bytes) == ("", {}, 0)
    assert blobs.stored_bytes(one.tenant_id) == 0
    two = records.add(replace(one, id=new_asset_id()))
    assert two.version == 2
    records.update(two.id, {"status": "deleted", "deleted_at_s": 1.0})
    assert records.purge(two.id)
    assert records.get(one.id) is None  # the higher number is enough
    assert records.add(replace(one, id=new_asset_id())).version == 3
    never = records.add(replace(one, id=new_asset_id(), name="never", parts={}, report={}))
    records.update(never.id, {"status": "deleted", "deleted_at_s": 1.0})
    assert records.purge(never.id)
    assert records.get(never.id) is None
