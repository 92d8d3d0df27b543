"""What strangers and tenants may send to any route: who is asked first, how much, and of what."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute

from assets.library.resolve import MAX_LORAS
from assets.plan import Plan
from serving.api.body import MAX_DEPTH, MAX_ELEMENTS, MAX_MARKS
from serving.api.keyed_route import KeyedRoute
from serving.api.limits import MAX_BODY_BYTES, MAX_JSON_BYTES
from tests.api_app import Api, serving_api
from tests.api_routes import Operation, operations

#: Every route that no key is asked for, on purpose.
OPEN = {
    "GET /healthz", "GET /health", "GET /healthcheck", "GET /readyz", "GET /metrics",
    "GET /v1/status", "GET /v1/pools", "GET /v1/pools/{name}",
    "GET /v1/jobs/{job_id}", "GET /v1/jobs/{job_id}/result",  # the id is the secret
    "PUT /objects/{key}", "GET /objects/{key}",  # signed
    "GET /files/{name}",  # the name is the secret
}  # fmt: skip


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with serving_api(tmp_path_factory.mktemp("api")) as served:
        yield served


async def test_every_route_asks_for_a_key_but_those_that_are_named(api: Api) -> None:
    found = set()
    for route in routes(api):
        if not isinstance(route, KeyedRoute):
            found |= {f"{method} {route.path_format}" for method in route.methods}
    unserved = {name for name in found if _is_unserved(api, name)}
    assert found - unserved == OPEN


def routes(api: Api) -> Iterator[APIRoute]:
    for included in api.app.routes:
        router = getattr(included, "original_router", None)
        yield from (r for r in (router.routes if router else ()) if isinstance(r, APIRoute))


def _is_unserved(api: Api, name: str) -> bool:
    method, _, path = name.partition(" ")
    return any(
        "not served" in route.tags
        for route in routes(api)
        if route.path_format == path and method in route.methods
    )


async def test_the_key_is_asked_for_before_the_body_is_read(api: Api) -> None:
    asked = 0
    for operation in operations(api.app):
        if f"{operation.method} {operation.path}" in OPEN:
            continue
        read: list[bytes] = []

        async def body(read: list[bytes] = read) -> AsyncIterator[bytes]:
            read.append(b"{}")
            yield b"{}"

        for headers in ({}, {"Authorization": "Bearer ao_0_x"}, {"Authorization": "Basic x"}):
            answer = await api.http.request(
                operation.method, operation.url(), content=body(), headers=headers
            )
            assert answer.status_code == 401, operation
            assert answer.headers["www-authenticate"] == "Bearer"
            assert not read, operation
        asked += 1
    assert asked > 20


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt":"x","seed":[' + ",".join(['""'] * 100_000) + "]}",
        '{"prompt":"x","loras":{' + ",".join(f'"{i}":""' for i in range(50_000)) + "}}",
        '{"prompt":"x",' + ",".join(f'"{i}":0' for i in range(50_000)) + "}",
        '{"prompt":"x",' + ",".join(f'"{"a" * 500}{i}":0' for i in range(1_500)) + "}",
        '{"prompt":"x","' + "k" * 1_000_000 + '":0}',
        '{"prompt":"x","checkpoint":"' + "c" * 1_000_000 + '"}',
        '{"prompt":"x","sampler":"' + "s" * 1_000_000 + '"}',
        '{"prompt":"x","seed":' + "1" * 100_000 + "}",
        "[" * 500_000,
        '{"prompt":' + '{"a":' * 200 + "1" + "}" * 201,
        '"' + "x" * 2_000_000 + '"',
    ],
    ids=lambda body: f"{body[:24]} {len(body) >> 10} KiB",
)
async def test_an_error_is_small_whatever_was_sent(api: Api, body: str) -> None:
    headers = {**api.key("acme"), "Content-Type": "application/json"}
    answer = await api.http.post("/generate/sdxl", content=body, headers=headers)
    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 8_192
    assert len(answer.json().get("detail", ())) <= 20
    assert answer.json()["code"] not in ("error", "internal")


async def test_a_body_is_bounded_before_it_is_read(api: Api) -> None:
    headers = {**api.key("acme"), "Content-Type": "application/json"}
    for size, status in ((MAX_JSON_BYTES + 1, 422), (MAX_BODY_BYTES + 1, 413)):
        headers["Content-Length"] = str(size)
        answer = await api.http.post("/generate/sdxl", content=b"{}", headers=headers)
        assert answer.status_code == status
        keyless = {"Content-Length": str(size), "Content-Type": "application/json"}
        answer = await api.http.post("/generate/sdxl", content=b"{}", headers=keyless)
        assert answer.status_code == 401

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65_536

    headers = {**api.key("acme"), "Content-Type": "application/json"}
    answer = await api.http.post("/generate/sdxl", content=endless(), headers=headers)
    assert answer.status_code == 413


async def test_elements_and_depth_have_limits_of_their_own(api: Api) -> None:
    headers = api.key("acme")

    async def sent(value: Any) -> int:
        body = {"prompt": "x", "transfer_images": value}
        return (await api.http.post("/generate/sdxl", json=body, headers=headers)).status_code

    deep: Any = 0
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    assert await sent(deep) == 422
    assert await sent([0] * (MAX_ELEMENTS + 1)) == 422
    loras = {f"lora{i}": 1.0 for i in range(MAX_LORAS + 1)}
    body = {"prompt": "x", "loras": loras}
    assert (await api.http.post("/generate/sdxl", json=body, headers=headers)).status_code == 422


async def test_a_body_of_separators_is_refused_before_it_is_parsed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(*_: Any, **__: Any) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("serving.api.body.json.loads", parse)
    headers = {**api.key("acme"), "Content-Type": "application/json"}
    body = b'{"prompt":"x","seed":[' + b'"",' * (MAX_MARKS + 1) + b'""]}'
    answer = await api.http.post("/generate/sdxl", content=body, headers=headers)
    assert answer.status_code == 422


async def test_every_field_of_every_request_has_a_limit(api: Api) -> None:
    unbounded = []
    for operation in operations(api.app):
        for place, schema in operation.every_schema():
            if _is_unbounded(schema):
                unbounded.append(f"{operation.method} {operation.path}: {place} {schema}")
    assert unbounded == []


def _is_unbounded(schema: dict[str, Any]) -> bool:
    match schema.get("type"):
        case "string":
            return not {"maxLength", "enum", "const", "format", "pattern"} & schema.keys()
        case "array":
            return "maxItems" not in schema
        case "object":
            return "additionalProperties" in schema and not (
                schema["additionalProperties"] is False or "maxProperties" in schema
            )
        case "integer":
            return not ({"maximum", "exclusiveMaximum"} & schema.keys())
    return False


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b'{"prompt":"x"}', {"Content-Type": "text/plain"}, 415),
        (b'{"prompt":"x"}', {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"\x1f\x8b", {"Content-Encoding": "gzip"}, 415),
        (b'{"prompt":"x"}', {}, 200),
        (b'{"prompt":"x"}', {"Content-Type": "application/json; charset=utf-8"}, 200),
        (b'{"prompt":"x"}', {"Content-Type": "application/vnd.x+json"}, 200),
        (b'{"prompt":"x","cfg_scale":NaN}', {}, 422),
        (b'{"prompt":"x","cfg_scale":1e999}', {}, 422),
        (b'{"prompt":"\xff"}', {}, 400),
        (b'{"prompt":"\\ud800"}', {}, 422),
        (b'{"prompt":"\\u0000"}', {}, 422),
        (b'{"prompt":"x","\\ud800":1}', {}, 422),
    ],
)
async def test_what_a_body_may_be(
    api: Api, content: bytes, headers: dict[str, str], status: int
) -> None:
    given = {**api.key("acme"), **headers}
    answer = await api.http.post("/generate/sdxl", content=content, headers=given)
    assert answer.status_code == status, answer.text
    if status == 415:
        assert "application/json" in answer.json()["message"] or "gzip" in answer.json()["message"]


async def test_an_answer_says_nothing_of_the_value_that_is_at_fault(api: Api) -> None:
    body = {"prompt": 7, "negative_prompt": ["a secret heron"], "steps": "a secret heron"}
    answer = await api.http.post("/generate/sdxl", json=body, headers=api.key("acme"))
    assert answer.status_code == 422
    assert "heron" not in answer.text


async def test_urls_are_text_that_can_be_stored(api: Api) -> None:
    headers = api.key("acme")
    for url in ("/v1/assets/a%00b", "/v1/assets?q=%00", "/v1/assets?name=a%00"):
        assert (await api.http.get(url, headers=headers)).status_code == 400
    for url in ("/v1/assets/a%ff", "/v1/assets?q=%ed%a0%80", "/v1/assets/%ed%a0%80"):
        assert (await api.http.get(url, headers=headers)).status_code in (200, 404)


async def test_no_redirect_to_a_host_that_the_request_named(api: Api) -> None:
    headers = {**api.key("acme"), "Host": "evil.example"}
    for path in ("/v1/keys/", "/generate/", "/v1/usage/"):
        answer = await api.http.get(path, headers=headers)
        assert answer.status_code in (404, 405)
        assert "location" not in answer.headers


async def test_what_is_not_there_is_404(api: Api) -> None:
    headers = api.key("acme")
    for method, path in (
        ("DELETE", "/v1/keys/unknown"),
        ("DELETE", "/v1/members/unknown"),
        ("POST", "/v1/keys/unknown/rotate"),
        ("GET", "/docs"),
        ("GET", "/redoc"),
    ):
        answer = await api.http.request(method, path, headers=headers)
        assert answer.status_code == 404, path
        assert answer.json()["code"] == "not_found"


async def test_every_route_spends_and_reading_is_cheap(api: Api) -> None:
    api.backends.directory.put_plan(Plan("small", requests_per_min=6))
    headers = api.key("lessee")
    api.backends.directory.set_plan("lessee", "small")

    async def allowed(method: str, path: str, **sent: Any) -> int:
        count = 0
        while (await api.http.request(method, path, headers=headers, **sent)).status_code != 429:
            count += 1
            assert count < 100
        return count

    assert 6 <= await allowed("GET", "/v1/assets") < 12  # at once; ten times as many a minute
    other = api.key("other")
    api.backends.directory.set_plan("other", "small")
    headers = other
    assert 5 <= await allowed("POST", "/generate/sdxl", content=b"[") <= 7  # a bad body spends, too
    assert (await api.http.get("/v1/assets", headers=headers)).status_code == 200  # may still look


async def test_numbers_that_no_database_holds(api: Api) -> None:
    headers = api.key("acme")
    for path in ("/v1/usage?after=", "/v1/assets?offset=", "/v1/audit?before=", "/v1/usage?limit="):
        for number in (2**63, 10**30, -(2**63) - 1, "9" * 5000):
            answer = await api.http.get(f"{path}{number}", headers=headers)
            assert answer.status_code == 422, path
            assert len(answer.content) < 2_000


async def test_a_search_has_few_words(api: Api) -> None:
    headers = api.key("acme")

    async def searched(query: str) -> int:
        return (await api.http.get(f"/v1/assets?{query}", headers=headers)).status_code

    assert await searched("q=" + "+".join(f"w{i}" for i in range(8))) == 200
    assert await searched("q=" + "+".join(f"w{i}" for i in range(9))) == 422
    assert await searched("q=" + "+".join(["a"] * 100)) == 200  # one word
    assert await searched("q=a&" + "&".join(f"tag=t{i}" for i in range(8))) == 422


async def test_probes_ask_what_is_behind_them_once_a_second(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    pools = api.backend.pools

    async def counted() -> Any:
        asked.append(1)
        return await pools()

    monkeypatch.setattr(api.backend, "pools", counted)
    for _ in range(50):
        assert (await api.http.get("/v1/pools")).status_code == 200
    assert len(asked) <= 3  # however slow this machine is
    for path in ("/readyz", "/metrics", "/v1/status"):
        assert (await api.http.get(path)).status_code in (200, 503)


async def test_the_document_says_how_to_ask_and_what_comes_back(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    jsonschema.Draft202012Validator.check_schema(document["components"]["schemas"])
    assert document["components"]["securitySchemes"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            assert bool(operation["security"]) == (name not in OPEN), name
            assert ("401" in operation["responses"]) == (name not in OPEN), name
            assert "HTTPValidationError" not in json.dumps(operation["responses"])
            content = operation["responses"]["200"]["content"]
            assert all("schema" in kind for kind in content.values()), name
            if method == "put":
                assert "requestBody" in operation, name


async def test_operations_cover_bodies_queries_and_paths() -> None:
    """Of what the other tests walk through."""
    found = Operation("POST", "/a/{b}", {"b": {"type": "string"}}, {}, None)
    assert found.url() == "/a/x"
    assert json.dumps(found.example_body()) == "null"
