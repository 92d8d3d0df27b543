"""One body for every database: SQLite, and PostgreSQL where its server is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assets.asset import Asset
from assets.content import Blob
from assets.errors import NameTaken
from assets.ids import is_asset_id, new_asset_id
from assets.records import Query
from assets.sql.records import SqlAssetRecords
from serving.database import open_database, upgrade
from tests.conftest import free_port

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A private PostgreSQL server on loopback."""
    if POSTGRES is None:
        pytest.skip("PostgreSQL's server is not installed")
    folder = Path("/tmp") / f"ao-postgres-{os.getpid()}"
    folder.mkdir()
    data, port = folder / "data", free_port()
    run: Any = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run["cwd"] = folder
    if os.getuid() == 0:  # it refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        run |= {"user": "postgres", "group": "postgres", "extra_groups": []}
    try:
        command = [str(POSTGRES / "initdb"), "-D", str(data), "-U", "ao", "-A", "trust"]
        subprocess.run(command, **run)
        control = [str(POSTGRES / "pg_ctl"), "-D", str(data), "-w"]
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        subprocess.run([*control, "-o", options, "start"], **run)
        yield f"postgresql+psycopg://ao@127.0.0.1:{port}/postgres"
        subprocess.run([*control, "-m", "immediate", "stop"], **run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def records(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlAssetRecords]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/r.db"
    else:
        url = request.getfixturevalue("postgres_url")
    engine = open_database(url)
    upgrade(engine)  # a second time changes nothing
    yield SqlAssetRecords(engine)
    engine.dispose()


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
    one = asset()
    records.add(one)
    assert records.get(one.id) == one
    assert records.find(one.tenant_id, "style") == one
    assert records.find("other", "style") is None
    assert records.find_public("acme", one.name) is None
    assert is_asset_id(one.id)


def test_a_live_name_is_taken_once_a_tenant(records: SqlAssetRecords) -> None:
    one = asset()
    records.add(one)
    with pytest.raises(NameTaken):
        records.add(replace(one, id=new_asset_id()))
    records.add(asset())  # another tenant
    records.update(one.id, {"status": "deleted", "deleted_at_s": 2.0})
    records.add(replace(one, id=new_asset_id()))


def test_update_expects(records: SqlAssetRecords) -> None:
    one = asset(status="uploaded")
    records.add(one)
    assert records.update(one.id, {"status": "ready"}, expect=("ready_to_upload",)) is None
    changed = records.update(one.id, {"status": "ready"}, expect=("uploaded",))
    assert changed is not None
    assert changed.status == "ready"
    assert records.update("nothing", {"status": "ready"}) is None


def test_pages_are_stable_and_count_everything(records: SqlAssetRecords) -> None:
    tenant = new_asset_id()
    for index in range(7):
        kind = "lora" if index % 2 else "vae"
        records.add(asset(tenant_id=tenant, name=f"n{index}", kind=kind, id=new_asset_id(index)))
    pages = [records.list(Query(tenant_id=tenant, limit=3, offset=o)) for o in (0, 3, 6)]
    names = [a.name for page in pages for a in page.assets]
    assert names == [f"n{index}" for index in range(7)]
    assert {page.total for page in pages} == {7}
    assert records.list(Query(tenant_id=tenant, kinds=["vae"])).total == 4
    assert records.list(Query(tenant_id=tenant, name="n3")).total == 1


def test_stale_uploads(records: SqlAssetRecords) -> None:
    one = asset(status="uploaded")
    records.add(one)
    assert one.id in {a.id for a in records.stale_uploads(1e12)}
    assert one.id not in {a.id for a in records.stale_uploads(0.0)}
