"""A tenant's stored bytes count; deleted ones are purged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from assets.plan import Plan
from assets.sql.rows import AssetRow
from assets.sql.search_index import WordRow
from serving.generation.fakes import IMAGE
from tests.support.api_app import Api, ready_asset, serving_api, working

LIMIT = 1_000


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving_api(tmp_path) as served:
        served.backends.directory.put_plan(Plan("small", storage_bytes=LIMIT))
        yield served


@pytest.fixture
def mine(api: Api) -> dict[str, str]:
    headers = api.key("acme")
    api.backends.directory.set_plan("acme", "small")
    return headers


async def stored(api: Api, mine: dict[str, str]) -> int:
    return int(
        (await api.http.get("/v1/organisation", headers=mine)).json()["used"]["storage_bytes"]
    )


async def create(api: Api, mine: dict[str, str], name: str, **fields: Any) -> dict[str, Any]:
    new = {"asset_type": "lora", "name": name, **fields}
    answer = await api.http.post("/v1/assets", json=new, headers=mine)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def path_of(made: dict[str, Any]) -> str:
    url = urlsplit(made["transfer_api"]["put_url"])
    return f"{url.path}?{url.query}"


async def test_uploaded_bytes_count_before_completion(api: Api, mine: dict[str, str]) -> None:
    made = [await create(api, mine, f"a{index}") for index in range(3)]
    for index in range(2):
        put = await api.http.put(path_of(made[index]), content=bytes(400))
        assert put.status_code == 200
    assert await stored(api, mine) == 800
    refused = await api.http.put(path_of(made[2]), content=bytes(400))
    assert refused.status_code == 413
    assert (await api.http.put(path_of(made[0]), content=bytes(600))).status_code == 200
    assert await stored(api, mine) == 1_000
    refused = await api.http.put(path_of(made[2]), content=bytes(1))
    assert (refused.status_code, refused.json()["code"]) == (403, "quota_exceeded")
    gone = await api.http.delete(f"/v1/assets/{made[0]['asset']['id']}/upload", headers=mine)
    assert gone.status_code == 200
    assert await stored(api, mine) == 400


async def test_an_aborted_upload_does_not_count(api: Api, mine: dict[str, str]) -> None:
    made = await create(api, mine, "a")

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(300)
        assert await stored(api, mine) == LIMIT  # no size: reserves all room
        raise ConnectionError

    assert (await api.http.put(path_of(made), content=broken())).is_error
    assert await stored(api, mine) == 0


async def test_one_upload_at_a_time_per_key(api: Api, mine: dict[str, str]) -> None:
    made = await create(api, mine, "a")
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(100)
        begun.set()
        await release.wait()
        yield bytes(100)

    first = asyncio.create_task(api.http.put(path_of(made), content=slow()))
    async with asyncio.timeout(10):
        await begun.wait()
    second = await api.http.put(path_of(made), content=bytes(10))
    assert (second.status_code, second.json()["code"]) == (409, "busy")
    release.set()
    assert (await first).json() == {"size_bytes": 200}
    assert (await api.http.put(path_of(made), content=bytes(10))).status_code == 200


async def test_the_declared_size_of_a_multipart_upload_counts(
    api: Api, mine: dict[str, str]
) -> None:
    new = {"asset_type": "lora", "name": "a", "transfer_api_type": "multipart", "size_bytes": 700}
    assert (await api.http.post("/v1/assets", json=new, headers=mine)).status_code == 200
    assert await stored(api, mine) == 700
    other = {**new, "name": "b", "size_bytes": 301}
    refused = await api.http.post("/v1/assets", json=other, headers=mine)
    assert refused.status_code == 422


async def test_restorable_assets_count_and_purged_ones_do_not(
    api: Api, mine: dict[str, str]
) -> None:
    (tenant,) = api.backends.directory.tenants()
    made = [ready_asset("acme", f"a{index}", "lora", tenant.id) for index in range(2)]
    for asset in made:
        api.backends.records.add(asset)
    assert await stored(api, mine) == 2
    await api.http.delete(f"/v1/assets/{made[0].id}", headers=mine)
    assert await stored(api, mine) == 2
    await api.http.delete(f"/v1/assets/{made[1].id}?for_good=true", headers=mine)
    assert await stored(api, mine) == 1
    restored = await api.http.post(f"/v1/assets/{made[0].id}/restore", headers=mine)
    assert restored.status_code == 200
    lost = await api.http.post(f"/v1/assets/{made[1].id}/restore", headers=mine)
    assert lost.status_code == 404


async def test_deleted_assets_are_purged_for_new_uploads(api: Api, mine: dict[str, str]) -> None:
    (tenant,) = api.backends.directory.tenants()
    made = [ready_asset("acme", f"a{index}", "lora", tenant.id) for index in range(3)]
    for asset in made:
        parts = {"lora": replace(asset.parts["lora"], size_bytes=400)}
        api.backends.records.add(replace(asset, parts=parts))  # type: ignore[arg-type]
    for asset in made[:2]:
        await api.http.delete(f"/v1/assets/{asset.id}", headers=mine)
    assert await stored(api, mine) == 1_200  # as after a downgrade
    new = await create(api, mine, "new")
    assert (await api.http.put(path_of(new), content=bytes(100))).status_code == 200
    assert await stored(api, mine) == 900  # purges the first deleted one
    restored = await api.http.post(f"/v1/assets/{made[1].id}/restore", headers=mine)
    assert restored.status_code == 200
    lost = await api.http.post(f"/v1/assets/{made[0].id}/restore", headers=mine)
    assert lost.status_code == 404
    assert (await api.http.put(path_of(new), content=bytes(201))).status_code == 413


async def test_stored_results_and_images_count(api: Api, mine: dict[str, str]) -> None:
    body = {"prompt": "a star", "steps": 1}
    assert (await api.http.post("/generate", json=body, headers=mine)).status_code == 200
    assert await stored(api, mine) == len(IMAGE)
    async with working(api):
        headers = {**mine, "X-OctoAI-Async": "1"}
        accepted = (await api.http.post("/generate/sdxl", json=body, headers=headers)).json()
        job = await api.context.jobs.watch.finished(accepted["response_id"])
    assert await stored(api, mine) > 2 * len(IMAGE)
    api.backends.blobs.keep("results/other", job.tenant_id, LIMIT)
    for path, more in (("/generate", {}), ("/generate/sdxl", {"X-OctoAI-Async": "1"})):
        refused = await api.http.post(path, json=body, headers={**mine, **more})
        assert refused.json()["code"] == "quota_exceeded"
    assert (await api.http.post("/generate/sdxl", json=body, headers=mine)).status_code == 200
    api.backends.blobs.unkeep(["results/other"])
    assert await stored(api, mine) < LIMIT


async def test_deleted_uploads_leave_no_rows(api: Api, mine: dict[str, str]) -> None:
    for index in range(5):
        made = await create(api, mine, f"a{index}", description="words of an asset")
        await api.http.delete(f"/v1/assets/{made['asset']['id']}", headers=mine)
    with Session(api.backends.database) as session:
        words = session.scalars(select(func.count()).select_from(WordRow)).one()
        assert words <= 1  # the base model's
        assert session.scalar(select(func.count()).select_from(AssetRow)) == 1
