"""An earlier release's database, and database errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from assets.library.records import Query
from assets.principal import Principal
from assets.selection import AssetSelection
from assets.sql.base import connect
from assets.sql.blobs import SqlBlobRecords
from assets.sql.records import SqlAssetRecords
from serving.bootstrap.database import open_database, upgrade
from serving.generation.contract import GenerationParams, GenerationRequest
from serving.jobs.store import JobStore
from serving.tenants.directory import Directory
from serving.tenants.keys import new_key
from serving.tenants.meter import Meter
from tests.support.generation import REQUEST

ACME = Principal("t", "acme")

#: A job's request as OctoAI's body, with what its internal form must be.
OLD_BODY = {
    "prompt": "a star",
    "negative_prompt": None,
    "checkpoint": "commons:pixel",
    "loras": {"commons:night": 0.5, "heart": {"unet": 1.0, "text_encoders": 0.2}},
    "textual_inversions": {"commons:lagoon": "lagoon"},
    "sampler": "K_EULER",
    "width": 1024,
    "height": 1024,
    "cfg_scale": 3.0,
    "steps": 4,
    "num_images": 2,
    "seed": [7, 8],
    "image_encoding": "png",
    "priority": 1,
    "gpu": None,
}
OLD_REQUEST = GenerationRequest(
    params=GenerationParams(
        prompt="a star", sampler="K_EULER", steps=4, cfg_scale=3.0, encoding="png"
    ),
    seeds=(7, 8),
    selection=AssetSelection(
        checkpoint="commons:pixel",
        loras={"commons:night": 0.5, "heart": 1.0},
        inversions={"commons:lagoon": "lagoon"},
        lora_text_weights={"heart": 0.2},
    ),
    width=1024,
    height=1024,
    priority=1,
)


def test_a_database_of_an_earlier_release_is_migrated(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    engine = connect(url)
    upgrade(engine, "0001")
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO jobs VALUES ('job_old', 't', 'acme', 1.0, 'pending', "
                ":request, NULL, NULL, 0.0, 5.0, NULL)"
            ),
            {"request": json.dumps(OLD_BODY)},
        )
        connection.execute(sa.text("INSERT INTO tenants VALUES ('t', 'acme', 2.0, 1.0)"))
        key = new_key()
        connection.execute(
            sa.text("INSERT INTO api_keys VALUES (:id, 't', :digest, 'laptop', 1.0, NULL)"),
            {"id": key.id, "digest": key.digest},
        )
        for asset_id, public, parts, deleted in (
            ("asset_1", 0, {"lora": ["k1", "s", 5]}, 2.0),
            ("asset_2", 1, {"lora": ["k2", "s", 6]}, None),
        ):
            connection.execute(
                sa.text(
                    "INSERT INTO assets VALUES (:id, 't', 'acme', 'style', 'lora', 1, 1, 'ready', "
                    "'', '', :public, 6, '{}', :parts, '{}', :deleted)"
                ),
                {"id": asset_id, "public": public, "parts": json.dumps(parts), "deleted": deleted},
            )
    engine.dispose()
    records, blobs = SqlAssetRecords(open_database(url)), SqlBlobRecords(open_database(url))
    first, second = records.get("asset_1"), records.get("asset_2")
    assert first is not None
    assert second is not None
    assert (first.version, first.visibility, first.is_deleted) == (1, "organisation", True)
    assert (second.version, second.visibility, second.is_deleted) == (2, "public", False)
    assert blobs.live(["k1", "k2"]) == {"k2"}
    assert records.list(Query(text="sty")).total == 1
    principal = Directory(open_database(url)).keyring.authenticate(key.text)
    assert principal == Principal("t", "acme", 2.0, key.id, "owner")
    assert blobs.stored_bytes("t") == 11  # with the restorable one
    engine = open_database(url)
    jobs = JobStore(engine, Meter(engine))
    old = jobs.get("job_old")
    assert old is not None
    assert (old.request, old.body_digest, old.status) == (OLD_REQUEST, None, "pending")
    assert jobs.add(ACME, REQUEST, "job_new", "digest").body_digest == "digest"
    assert jobs.add(ACME, REQUEST, "job_new", "more").body_digest == "digest"


def test_database_errors_do_not_contain_the_parameters(database: Any) -> None:
    with pytest.raises(sa.exc.SQLAlchemyError) as failed, database.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO no_such_table VALUES (:prompt)"), {"prompt": "a secret heron"}
        )
    assert "heron" not in str(failed.value)
