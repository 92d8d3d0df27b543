"""Pinned assets, on every database."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Engine

from assets.asset import Asset
from assets.content import Blob
from assets.errors import AssetNotFound, InvalidAsset
from assets.ids import new_asset_id
from assets.sql.pins import Pins
from assets.sql.records import SqlAssetRecords


def test_pins_follow_their_assets(database: Engine) -> None:
    records, pins = SqlAssetRecords(database), Pins(database)
    owner, keys = new_asset_id(), [new_asset_id(), new_asset_id()]
    first = records.add(
        Asset(
            id=new_asset_id(), tenant_id=owner, owner=owner, name="style", kind="lora",
            created_at_s=1.0, status="ready",
        )
    )  # fmt: skip
    records.update(first.id, {"parts": {"lora": Blob(keys[0], "s", 5)}})
    second = records.add(replace(first, id=new_asset_id()), new_version=True)
    records.update(second.id, {"parts": {"lora": Blob(keys[1], "s", 5)}})
    assert pins.add(f"{owner}:style").id == second.id  # the newest version
    pins.add(first.id)
    pins.add(first.id)
    assert pins.keys() >= set(keys)
    assert {asset.id for asset in pins.list()} >= {first.id, second.id}
    records.update(second.id, {"deleted_at_s": 2.0, "status": "deleted"})
    assert keys[1] not in pins.keys() | set()
    pins.remove(first.id)
    assert keys[0] not in pins.keys() | set()
    for unknown in (first.id, second.id, "nobody:nothing"):
        with pytest.raises((AssetNotFound, InvalidAsset)):
            pins.remove(unknown)
