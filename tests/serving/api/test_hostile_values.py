"""Fuzzes every field of every route, by every role, on both databases.

No response is a 5xx; everything stored can be listed.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import jsonschema
import pytest
import pytest_asyncio

from assets.principal import KEY_ROLES
from tests.support.api_app import Api, ready_asset, serving_api
from tests.support.api_routes import Operation, operations

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = ["", " ", ".", "..", "../../etc/passwd", "a/b", "-", "commons:base", "acme:style", "a@b"]
NAMES += ["style@0", "style@99999999999", "@", ":", "%", "_", "*", "null", "true", "NaN", "O'Hara"]
NAMES += ["'; DROP TABLE assets; --", "<script>alert(1)</script>", "{{7*7}}", "[red]x[/red]"]
UNICODE = ["\0", "a\0b", "\ud800", "a\udfff", "\ud83d\ude00", "e\u0301", "\u202e", "\ufeff", "İß"]
UNICODE += ["\x01\x1b[31m", "\r\nX-Injected: 1", "\U0010ffff", "ﷺ" * 100, "\u2028"]
LONG = ["x" * 65, "x" * 129, "x" * 5_000, "w " * 5_000, "x" * 200_000]
NUMBERS: list[Any] = [-1, 0, 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 1e308, -0.0]
NUMBERS += [0.5, 1e-320, "1", "1e9", "0x10", "١", "1_000"]
OTHERS: list[Any] = [None, True, False, [], {}, [None], [[]], {"": ""}, [""] * 1_000, {"a": [{}]}]
DATES = ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "2026-02-30T00:00:00Z", "1", "never"]
TEXTS: list[Any] = [*NAMES, *UNICODE, *LONG, *DATES]
VALUES: list[Any] = [*TEXTS, *NUMBERS, *OTHERS]


def nested(schema: dict[str, Any], value: Any) -> list[Any]:
    variants = [value, [value]]
    if isinstance(value, str):
        variants.append({value: 1.0})
    variants.append({"a": value})
    for alternative in schema.get("anyOf", [schema]):
        variants += [{name: value} for name in alternative.get("properties", {})]
    return variants


def requests(operation: Operation) -> Iterator[tuple[str, bytes | None]]:
    """Yield requests with one hostile field each."""
    example = operation.example_body()
    body = None if example is None else json.dumps(example).encode()
    for name in operation.path_fields:
        for value in TEXTS:
            if len(value) < 50_000:
                yield operation.url(**{name: quoted(value)}), body
    for name in operation.query_fields:
        for value in VALUES:
            text = value if isinstance(value, str) else json.dumps(value)
            if len(text) < 50_000:
                yield f"{operation.url()}?{name}={quoted(text)}", body
    for name, schema in operation.body_fields().items():
        for value in VALUES:
            for variant in nested(schema, value):
                yield operation.url(), json.dumps({**example, name: variant}).encode()
    for value in VALUES:
        yield operation.url(), json.dumps(value).encode()


def quoted(text: str) -> str:
    """Percent-encode, lone surrogates as UTF-8 would."""
    return quote(text.encode(errors="surrogatepass"), safe="")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "postgres"])
async def api(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Api]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    async with serving_api(tmp_path_factory.mktemp("hostile"), url, open_tenant="acme") as served:
        yield served


async def attack(api: Api, share: float) -> Counter[int]:
    """Send a random ``share``; count responses by status."""
    rng = random.Random(18)
    keys = {role: api.key("acme", role) for role in KEY_ROLES}
    tenant = next(t for t in api.backends.directory.tenants() if t.name == "acme")
    asset = ready_asset("acme", "lora", "lora", tenant.id)
    statuses: Counter[int] = Counter()
    api.backends.records.add(asset, new_version=True)
    for operation in operations(api.app):
        for url, body in requests(operation):
            if rng.random() >= share:
                continue
            role = rng.choice(KEY_ROLES)
            headers = {**keys[role], "Content-Type": "application/json"}
            # Keep the key in use and the asset.
            if operation.method == "DELETE" and headers["Authorization"].split("_")[1] in url:
                continue
            answer = await api.http.request(operation.method, url, content=body, headers=headers)
            statuses[answer.status_code] += 1
            what = (operation.method, url[:200], (body or b"")[:200], answer.text[:300])
            assert answer.status_code < 500 or is_expected(operation, answer), what
            assert len(answer.content) < 200_000, what
            # Dots or slashes in the path may reach another route.
            is_own = url.partition("?")[0] == operation.url()
            if answer.status_code == 200 and operation.answer is not None and is_own:
                jsonschema.validate(answer.json(), operation.answer)
            if answer.is_error and operation.path != "/readyz":
                assert answer.json()["code"] != "error", what
    return statuses


def is_expected(operation: Operation, answer: httpx2.Response) -> bool:
    """A 5xx is expected without a model; some OctoAI routes are a 501."""
    return operation.path == "/readyz" or answer.json()["code"] == "not_served"


LISTS = ["/v1/assets", "/v1/assets?is_public=true", "/v1/assets?shared=true", "/v1/organisation"]
LISTS += ["/v1/usage", "/v1/usage.csv", "/v1/audit", "/v1/members", "/v1/keys", "/v1/pools"]


async def check_listings(api: Api) -> None:
    owner = api.key("acme")
    for path in LISTS:
        answer = await api.http.get(path, headers=owner)
        assert answer.status_code == 200, (path, answer.text[:300])
        answer.content.decode()
    for stored in (await api.http.get("/v1/assets", headers=owner)).json()["data"]:
        answer = await api.http.get(f"/v1/assets/{stored['id']}", headers=owner)
        assert answer.status_code == 200


async def test_some_hostile_values(api: Api) -> None:
    statuses = await attack(api, 0.05)
    assert statuses.total() > 800
    assert statuses[200] > 30
    await check_listings(api)


@pytest.mark.slow
async def test_all_hostile_values(api: Api) -> None:
    statuses = await attack(api, 0.4)
    print(f"{statuses.total()} requests: {dict(sorted(statuses.items()))}")
    assert statuses.total() > 10_000
    await check_listings(api)
