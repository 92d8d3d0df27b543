"""Limits of all routes: authentication first, then requests' size and content."""

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
from tests.support.api_app import Api, serving_api
from tests.support.api_routes import Operation, operations
from tests.support.openapi import DOCUMENT, document

#: Routes without a key, by design.
OPEN = {
    "GET /healthz", "GET /health", "GET /healthcheck", "GET /readyz", "GET /metrics",
    "GET /v1/status", "GET /v1/pools", "GET /v1/pools/{name}",
    "GET /v1/jobs/{job_id}", "GET /v1/jobs/{job_id}/events",  # the id is the secret
    "GET /v1/jobs/{job_id}/result",
    "PUT /objects/{key}", "GET /objects/{key}",  # signed
    "GET /files/{name}",  # the name is the secret
}  # fmt: skip


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with serving_api(tmp_path_factory.mktemp("api")) as served:
        yield served


async def test_every_route_but_the_listed_ones_needs_a_key(api: Api) -> None:
    keyless = set()
    for route in routes(api):
        if not isinstance(route, KeyedRoute):
            keyless |= {f"{method} {route.path_format}" for method in methods_of(route)}
    unsupported = {name for name in keyless if _is_unsupported(api, name)}
    assert keyless - unsupported == OPEN


def routes(api: Api) -> Iterator[APIRoute]:
    for included in api.app.routes:
        router = getattr(included, "original_router", None)
        yield from (r for r in (router.routes if router else ()) if isinstance(r, APIRoute))


def methods_of(route: APIRoute) -> set[str]:
    assert route.methods is not None
    return route.methods


def _is_unsupported(api: Api, name: str) -> bool:
    method, _, path = name.partition(" ")
    return any(
        "not served" in route.tags
        for route in routes(api)
        if route.path_format == path and method in methods_of(route)
    )


async def test_authentication_precedes_reading_the_body(api: Api) -> None:
    count = 0
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
        count += 1
    assert count > 20


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
async def test_errors_are_small_for_any_body(api: Api, body: str) -> None:
    headers = {**api.key("acme"), "Content-Type": "application/json"}
    answer = await api.http.post("/generate/sdxl", content=body, headers=headers)
    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 8_192
    assert len(answer.json().get("detail", ())) <= 20
    assert answer.json()["code"] not in ("error", "internal")


async def test_body_size_is_limited_before_reading(api: Api) -> None:
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


async def test_elements_and_depth_are_limited(api: Api) -> None:
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


async def test_a_body_of_separators_is_refused_before_parsing(
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
async def test_content_types_and_json_values(
    api: Api, content: bytes, headers: dict[str, str], status: int
) -> None:
    headers = {**api.key("acme"), **headers}
    answer = await api.http.post("/generate/sdxl", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    if status == 415:
        assert "application/json" in answer.json()["message"] or "gzip" in answer.json()["message"]


async def test_an_error_does_not_repeat_the_invalid_value(api: Api) -> None:
    body = {"prompt": 7, "negative_prompt": ["a secret heron"], "steps": "a secret heron"}
    answer = await api.http.post("/generate/sdxl", json=body, headers=api.key("acme"))
    assert answer.status_code == 422
    assert "heron" not in answer.text


async def test_urls_contain_storable_text_only(api: Api) -> None:
    headers = api.key("acme")
    for url in ("/v1/assets/a%00b", "/v1/assets?q=%00", "/v1/assets?name=a%00"):
        assert (await api.http.get(url, headers=headers)).status_code == 400
    for url in ("/v1/assets/a%ff", "/v1/assets?q=%ed%a0%80", "/v1/assets/%ed%a0%80"):
        assert (await api.http.get(url, headers=headers)).status_code in (200, 404)


async def test_no_redirect_to_the_host_header(api: Api) -> None:
    headers = {**api.key("acme"), "Host": "evil.example"}
    for path in ("/v1/keys/", "/generate/", "/v1/usage/"):
        answer = await api.http.get(path, headers=headers)
        assert answer.status_code in (404, 405)
        assert "location" not in answer.headers


async def test_missing_objects_get_404(api: Api) -> None:
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


async def test_every_route_is_rate_limited_and_reads_are_cheap(api: Api) -> None:
    api.backends.directory.put_plan(Plan("small", requests_per_min=6))
    headers = api.key("lessee")
    api.backends.directory.set_plan("lessee", "small")

    async def allowed(method: str, path: str, **sent: Any) -> int:
        count = 0
        while (await api.http.request(method, path, headers=headers, **sent)).status_code != 429:
            count += 1
            assert count < 100
        return count

    assert 6 <= await allowed("GET", "/v1/assets") < 12  # a burst of 6; ten times the rate
    other = api.key("other")
    api.backends.directory.set_plan("other", "small")
    headers = other
    assert 5 <= await allowed("POST", "/generate/sdxl", content=b"[") <= 7
    assert (
        await api.http.get("/v1/assets", headers=headers)
    ).status_code == 200  # reads' own quota


async def test_numbers_outside_64_bits_get_422(api: Api) -> None:
    headers = api.key("acme")
    for path in ("/v1/usage?after=", "/v1/assets?offset=", "/v1/audit?before=", "/v1/usage?limit="):
        for number in (2**63, 10**30, -(2**63) - 1, "9" * 5000):
            answer = await api.http.get(f"{path}{number}", headers=headers)
            assert answer.status_code == 422, path
            assert len(answer.content) < 2_000


async def test_the_number_of_search_words_is_limited(api: Api) -> None:
    headers = api.key("acme")

    async def searched(query: str) -> int:
        return (await api.http.get(f"/v1/assets?{query}", headers=headers)).status_code

    assert await searched("q=" + "+".join(f"w{i}" for i in range(8))) == 200
    assert await searched("q=" + "+".join(f"w{i}" for i in range(9))) == 422
    assert await searched("q=" + "+".join(["a"] * 100)) == 200  # repeated words count once
    assert await searched("q=a&" + "&".join(f"tag=t{i}" for i in range(8))) == 422


async def test_probe_results_are_cached_for_a_second(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    pools = api.backend.pools

    async def counted() -> Any:
        calls.append(1)
        return await pools()

    monkeypatch.setattr(api.backend, "pools", counted)
    for _ in range(50):
        assert (await api.http.get("/v1/pools")).status_code == 200
    assert len(calls) <= 3  # slow machines take seconds
    for path in ("/readyz", "/metrics", "/v1/status"):
        assert (await api.http.get(path)).status_code in (200, 503)


async def test_the_openapi_document_is_the_committed_one(api: Api) -> None:
    assert document(api.app) == DOCUMENT.read_text(), "run python -m tests.support.openapi"
    ids = [operation["operationId"] for path in api.app.openapi()["paths"].values()
           for operation in path.values()]  # fmt: skip
    assert len(ids) == len(set(ids))


async def test_the_openapi_document_has_security_errors_and_responses(api: Api) -> None:
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
            assert any("422" in status for status in operation["responses"]), name
            if method == "put":
                assert "requestBody" in operation, name
            bodies = [content, operation.get("requestBody", {}).get("content", {})]
            for media_type, body in (item for kinds in bodies for item in kinds.items()):
                if media_type == "application/json" or media_type.startswith("text/"):
                    assert "example" in body, (name, media_type)


async def test_examples_of_requests_are_accepted(api: Api) -> None:
    """Each as it stands in the document, once what it names exists."""
    headers = api.key("acme")
    document = api.app.openapi()

    async def send(method: str, path: str, operation_id: str, **other: Any) -> Any:
        body = {**_example(document, operation_id), **other}
        answer = await api.http.request(method, path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    ref = (await send("POST", "/v1/assets", "create_asset"))["asset"]["id"]
    changed = await send("PATCH", f"/v1/assets/{ref}", "update_asset", revision=0)
    assert changed["asset"]["tags"] == ["style"]
    await send("POST", "/v1/members", "add_member")
    key = (await send("POST", "/v1/keys", "create_key"))["id"]
    assert (await send("POST", f"/v1/keys/{key}/rotate", "rotate_key"))["replaces"] == key
    # Without the LoRA, which has no file.
    assert (await send("POST", "/generate/sdxl", "generate_sdxl", loras={}))["images"]


def _example(document: Any, operation_id: str) -> Any:
    for path in document["paths"].values():
        for operation in path.values():
            if operation["operationId"] == operation_id:
                return operation["requestBody"]["content"]["application/json"]["example"]
    raise AssertionError(operation_id)


async def test_operation_urls_and_bodies() -> None:
    operation = Operation("POST", "/a/{b}", {"b": {"type": "string"}}, {}, None)
    assert operation.url() == "/a/x"
    assert json.dumps(operation.example_body()) == "null"
