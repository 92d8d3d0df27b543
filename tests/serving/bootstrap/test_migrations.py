"""Migrations keep an older database's data."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import text

from assets.library.records import Query
from assets.sql.base import connect
from assets.sql.records import SqlAssetRecords
from serving.bootstrap.database import open_database, upgrade

_ASSET = {
    "id": "asset_1", "tenant_id": "t1", "owner": "me", "name": "style", "version": 1,
    "kind": "lora", "created_at_s": 1.0, "changed_at_s": 1.0, "status": "ready",
    "status_details": "", "description": "", "visibility": "private", "created_by": "",
    "size_bytes": 5, "data": "{}", "parts": json.dumps({"lora": ["t" + "0" * 40, "ab", 5]}),
    "report": json.dumps({"source_sha256": "d" * 64, "modules": 3, "matched": 3}), "uses": 0,
}  # fmt: skip


def test_assets_of_an_older_schema_are_found_by_digest(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/platform.db"
    engine = connect(url)
    upgrade(engine, "0013")
    columns, values = ", ".join(_ASSET), ", ".join(f":{name}" for name in _ASSET)
    insert = text(f"INSERT INTO assets ({columns}) VALUES ({values})")
    rejected = {**_ASSET, "id": "asset_2", "name": "junk", "status": "rejected", "parts": "{}"}
    with engine.begin() as connection:
        connection.execute(insert, [_ASSET, {**rejected, "report": json.dumps({"reasons": []})}])
    records = SqlAssetRecords(open_database(url))
    (found,) = records.list(Query(tenant_id="t1", sha256="d" * 64)).assets
    assert (found.id, found.original) == ("asset_1", None)
    assert found.parts["lora"].key == "t" + "0" * 40
    assert records.list(Query(tenant_id="t1", sha256="e" * 64)).assets == []
