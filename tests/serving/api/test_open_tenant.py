"""Keyless requests to an open tenant; results that a key lost access to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serving.errors import Unauthenticated
from tests.support.api_app import Api, ready_asset, serving_api, working

PROMPT = {"prompt": "a star", "steps": 1}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    settings: dict[str, Any] = {"open_tenant": "open", "open_requests_per_min": 10}
    async with serving_api(tmp_path, **settings) as served:
        yield served


def add(api: Api, name: str, visibility: str) -> None:
    tenant = next(t for t in api.backends.directory.tenants() if t.name == "open")
    asset = ready_asset("open", name, "lora", tenant.id, visibility=visibility)
    api.backends.records.add(asset)


async def generate(api: Api, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    answer = await api.http.post("/generate", json={**PROMPT, **fields}, headers=headers)
    return answer.status_code, answer.json()


async def test_anonymous_clients_use_public_assets_only(api: Api) -> None:
    api.key("open")
    for visibility in ("private", "organisation", "public"):
        add(api, visibility, visibility)
    assert (await generate(api))[0] == 200
    assert (await generate(api, loras={"open:public": 1.0}))[0] == 200
    for name in ("private", "organisation", "open:private"):
        status, body = await generate(api, loras={name: 1.0})
        _, unknown = await generate(api, loras={"nothing": 1.0})
        assert status == 404
        assert body["message"].replace(name, "?") == unknown["message"].replace("nothing", "?")
    assert (await api.http.post("/generate/sdxl", json=PROMPT)).status_code == 401


async def test_anonymous_clients_have_their_own_queue_and_rate(api: Api) -> None:
    owner = api.key("open")
    statuses = [(await generate(api))[0] for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2
    assert (await generate(api, owner))[0] == 200
    assert len({submission.tenant_id for submission in api.backend.submissions}) == 2
    assert {s.request.tenant_id for s in api.backend.submissions} == {
        api.backends.directory.tenants()[0].id
    }


async def test_an_idempotency_key_reveals_nothing_to_anonymous_clients(api: Api) -> None:
    named = {"Idempotency-Key": "k"}
    owner = {**api.key("open"), **named}
    async with working(api):
        _, mine = await generate(api, owner)
        _, first = await generate(api, named)
        _, again = await generate(api, named)
        assert first["seeds"] == again["seeds"] != mine["seeds"]
        status, other = await generate(api, named, prompt="another")
        assert status == 200  # nor its use by other anonymous clients
        assert other["seeds"] != first["seeds"]


async def test_a_reader_gets_no_result_by_a_known_idempotency_key(api: Api) -> None:
    owner, reader = (api.key("open", role) for role in ("owner", "reader"))
    named = {"Idempotency-Key": "k"}
    async with working(api):
        assert (await generate(api, {**owner, **named}))[0] == 200
        assert (await generate(api, {**reader, **named}))[0] == 403


async def test_jobs_of_a_revoked_key_are_not_generated(api: Api) -> None:
    headers = {**api.key("acme"), "X-OctoAI-Async": "1"}
    accepted = (await api.http.post("/generate/sdxl", json=PROMPT, headers=headers)).json()
    keyring = api.backends.directory.keyring
    (key,) = keyring.keys("acme")
    keyring.revoke_key(key.id, "acme")
    async with working(api), asyncio.timeout(10):
        job = await api.context.jobs.watch.finished(accepted["response_id"])
    assert job.error is not None
    assert job.error.failure is not None
    assert isinstance(job.error.failure.error(), Unauthenticated)
    assert api.backend.submissions == []


async def test_an_expired_keys_job_is_generated(api: Api) -> None:
    headers = {**api.key("acme"), "X-OctoAI-Async": "1"}
    accepted = (await api.http.post("/generate/sdxl", json=PROMPT, headers=headers)).json()
    keyring = api.backends.directory.keyring
    (key,) = keyring.keys("acme")
    keyring.rotate_key(key.id, 0.0, "acme")
    async with working(api), asyncio.timeout(10):
        job = await api.context.jobs.watch.finished(accepted["response_id"])
    assert job.error is None
    assert len(api.backend.submissions) == 1


async def test_a_preview_url_expires_with_the_sharing(api: Api) -> None:
    owner = api.key("open")
    add(api, "style", "public")
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    put = await api.http.put("/v1/assets/style/preview", content=file.getvalue(), headers=owner)
    shared = put.json()["asset"]["preview_url"]
    assert (await api.http.get(shared)).status_code == 200
    change = {"visibility": "private"}
    changed = await api.http.patch("/v1/assets/style", json=change, headers=owner)
    assert (await api.http.get(shared)).status_code == 404
    own = changed.json()["asset"]["preview_url"]
    assert (await api.http.get(own)).status_code == 200
    described = await api.http.patch("/v1/assets/style", json={"tags": ["x"]}, headers=owner)
    assert described.json()["asset"]["preview_url"].partition("?")[0] == own.partition("?")[0]
