"""This version opens an earlier one's data folder, killed during requests."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import MetaData, create_engine, insert
from sqlalchemy.engine import Engine

from assets.storage.object_store import put_file
from serving.bootstrap.backends import open_backends
from serving.bootstrap.database import upgrade
from serving.bootstrap.storage import open_store
from serving.settings import Settings
from tests.golden.make_data_folder import ARCHIVE, REQUEST, image_of, job_status
from tests.support.platforms import Running, put_asset, running, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: The folder's newest migration.
REVISION = "0014"
#: Pixel difference: other CPUs round differently; other weights differ far more.
_MOST_LEVELS = 3
#: Retention: nothing expires.
_AGES_S = 1e9


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the files that every version generates."""
    folder = tmp_path_factory.mktemp("new")
    with running(folder, "--in-process", replicas=1, effect_probe=False):
        pass
    return folder / "data"


def unpack(folder: Path, new_folder: Path) -> Mapping[str, Any]:
    folder.mkdir(mode=0o700)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    shutil.copytree(new_folder / "models", folder / "models")
    for part in ("blobs", "models"):
        for path in (new_folder / "store" / part).rglob("*"):
            if path.is_file() and (part == "models" or path.name.startswith("p")):
                target = folder / "store" / path.relative_to(new_folder / "store")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    expected: Mapping[str, Any] = json.loads((folder / "expected.json").read_text())
    return expected


def copy_rows(path: Path, url: str) -> None:
    source, target = create_engine(f"sqlite:///{path}"), create_engine(url)
    upgrade(target, REVISION)
    old_tables, new_tables = MetaData(), MetaData()
    old_tables.reflect(source)
    new_tables.reflect(target)
    with source.connect() as old, target.begin() as new:
        for table in new_tables.sorted_tables:
            if table.name != "alembic_version":
                select = old_tables.tables[table.name].select()
                rows = [dict(row) for row in old.execute(select).mappings()]
                if rows:
                    new.execute(insert(table), rows)
    _continue_sequences(target, new_tables)
    source.dispose()
    target.dispose()


def _continue_sequences(engine: Engine, tables: MetaData) -> None:
    with engine.begin() as connection:
        for table in tables.sorted_tables:
            for column in table.primary_key.columns:
                if column.autoincrement is True or str(column.server_default or "").startswith("n"):
                    name = f"pg_get_serial_sequence('{table.name}', '{column.name}')"
                    newest = f"(SELECT COALESCE(MAX({column.name}), 0) + 1 FROM {table.name})"
                    connection.exec_driver_sql(f"SELECT setval({name}, {newest}, false)")


@pytest.fixture(params=["sqlite and a folder", "postgresql and s3"])
def old(
    request: pytest.FixtureRequest, tmp_path: Path, new_folder: Path
) -> Iterator[tuple[Running, Mapping[str, Any]]]:
    data = tmp_path / "data"
    expected = unpack(data, new_folder)
    settings: dict[str, Any] = {"results_kept_s": _AGES_S, "pictures_kept_s": _AGES_S}
    if request.param != "sqlite and a folder":
        url = request.getfixturevalue("postgres_url")
        server = request.getfixturevalue("s3_server")
        copy_rows(data / "platform.db", url)
        settings |= {
            "database_url": url,
            "store_url": f"{server['url']}/upgrade",
            "store_options": server["options"],
        }
        store = open_store(Settings(data_dir=data, **settings))
        for path in (data / "store").rglob("*"):
            if path.is_file():
                put_file(store, str(path.relative_to(data / "store")), path)
        shutil.rmtree(data / "store")
        (data / "platform.db").unlink()
    with running(tmp_path, "--in-process", replicas=1, effect_probe=False, **settings) as made:
        yield made, expected


def test_kept_data_is_unchanged(old: tuple[Running, Mapping[str, Any]]) -> None:
    server, expected = old
    key = {"Authorization": f"Bearer {expected['key']}"}
    http = httpx2.Client(base_url=server.url, headers=key, timeout=120)
    backends = open_backends(server.settings)
    keys = {
        asset_id: {part: [b.key, b.sha256, b.size_bytes] for part, b in asset.parts.items()}
        for asset_id in expected["content_keys"]
        if (asset := backends.records.get(asset_id)) is not None
    }
    assert keys == expected["content_keys"]
    assert [asset.id for asset in backends.pins.list()] == expected["pins"]
    for asset_id, asset in expected["assets"].items():
        answer = http.get(f"/v1/assets/{asset_id}", params={"transfer_api_type": "presigned-url"})
        assert answer.json()["asset"]["name"] == asset["name"]
        data = httpx2.get(answer.json()["transfer_api"]["get_url"]).content
        assert hashlib.sha256(data).hexdigest() == asset["sha256"]

    # Plan and usage are kept; accepted jobs are done and charged once.
    organisation = http.get("/v1/organisation").json()
    assert organisation["plan"] == expected["organisation"]["plan"]
    jobs = expected["unfinished"]
    wait_until(lambda: all(job_status(http, job) == "completed" for job in jobs), 240)
    for job in jobs:
        assert len(http.get(f"/v1/jobs/{job}/result").json()["images"]) == 4
    usage = http.get("/v1/usage", params={"limit": 100}).json()
    charges = [row["reference"] for row in usage["data"] if row["kind"] == "picture"]
    assert len(charges) == len(set(charges)) == 2 + 4 * len(jobs)
    used = expected["organisation"]["used"]
    engine = create_engine(server.settings.resolved_database_url)
    with engine.connect() as database:
        (reserved,) = database.exec_driver_sql("SELECT COUNT(*) FROM reservations").one()
        rows = database.exec_driver_sql("SELECT month, used_gpu_s FROM budgets").all()
    engine.dispose()
    budgets = {str(month): float(gpu_s) for month, gpu_s in rows}
    assert reserved == 0
    assert sum(budgets.values()) == pytest.approx(usage["totals"]["gpu_s"])
    assert budgets[used["month"]] >= used["gpu_s"]

    # The same request generates the same image.
    before = base64.b64decode(expected["image_b64"])
    finished = http.get(f"/v1/jobs/{expected['finished']}/result").json()
    again = http.post("/generate/sdxl", json=REQUEST, headers={"Idempotency-Key": "finished"})
    fresh = http.post("/generate/sdxl", json=REQUEST)
    assert image_of(again.json()) == before
    for answer in (finished, fresh.json()):
        difference = pixels(image_of(answer)) - pixels(before)
        assert np.abs(difference).max() <= _MOST_LEVELS

    # The unfinished upload completes.
    unfinished = expected["half"]
    http.post(f"/v1/assets/{unfinished}/complete-upload", json={}).raise_for_status()
    wait_until(lambda: asset_status(http, unfinished) != "uploaded")
    assert asset_status(http, unfinished) == "ready"
    file = server.log.parent / "new.safetensors"
    lora, *_ = [a for a in expected["assets"] if expected["assets"][a]["name"] == "стиль"]
    described = http.get(f"/v1/assets/{lora}", params={"transfer_api_type": "presigned-url"})
    file.write_bytes(httpx2.get(described.json()["transfer_api"]["get_url"]).content)
    put_asset(http, file, "lora", "new")
    http.close()
    backends.close()


def asset_status(http: httpx2.Client, asset_id: str) -> str:
    return str(http.get(f"/v1/assets/{asset_id}").json()["asset"]["status"])


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)
