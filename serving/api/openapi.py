"""The OpenAPI document: what FastAPI derives, with the key, the errors and the answers that the
routes have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from serving.api import answers
from serving.api.answers import Error
from serving.api.keyed_route import KeyedRoute

_BINARY = {"type": "string", "format": "binary"}
_JSON = "application/json"
#: Of any route; of those that ask for a key; of those that read JSON.
_ANY, _KEYED = (400, 403, 404, 422, 431, 503), (401, 429)
_WITH_BODY = (402, 408, 409, 413, 415)


def answers_with(model: type[BaseModel], *, statuses: Sequence[int] = (200,)) -> dict[str, Any]:
    """For a route's decorator: its answer is this model, with each of these statuses."""
    content = {_JSON: {"schema": _reference(model)}}
    responses = {status: {"content": content} for status in statuses}
    return {"response_model": None, "responses": responses}


def answers_bytes(*media_types: str) -> dict[str, Any]:
    """For a route's decorator: its answer is a file of one of these types."""
    content = {media_type: {"schema": _BINARY} for media_type in media_types}
    responses = {200: {"content": content}}
    return {"response_model": None, "response_class": Response, "responses": responses}


def reads_bytes(*media_types: str) -> dict[str, Any]:
    """For a route's ``openapi_extra``: its body is a file."""
    content = {media_type: {"schema": _BINARY} for media_type in media_types}
    return {"requestBody": {"content": content, "required": True}}


def reads_headers(**described: str) -> dict[str, Any]:
    """For a route's ``openapi_extra``: headers that it looks at, with underscores for dashes."""
    return {
        "parameters": [
            {
                "name": name.replace("_", "-"),
                "in": "header",
                "required": False,
                "description": text,
                "schema": {"type": "string", "maxLength": 255},
            }
            for name, text in described.items()
        ]
    }


def install(app: FastAPI) -> None:
    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI documents it


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for model in _named(found["paths"]) | {"Error"}:
        _add(schemas, model)
    found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    keyed = dict(_security(app))
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            _complete(operation, keyed.get((method.upper(), path)))
    return found


def _complete(operation: dict[str, Any], security: list[Mapping[str, Any]] | None) -> None:
    operation["security"] = security or []
    statuses = (*_ANY, *(_KEYED if security else ()))
    statuses += _WITH_BODY if "requestBody" in operation else ()
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own error model, which this API does not use
    for status in statuses:
        content = {_JSON: {"schema": _reference(Error)}}
        error = {"description": _MEANING[status], "content": content}
        responses.setdefault(str(status), error)
    for status, response in responses.items():
        response.setdefault("description", _MEANING.get(int(status), "It was done."))
    operation["responses"] = dict(sorted(responses.items()))


def _security(app: FastAPI) -> Iterator[tuple[tuple[str, str], list[Mapping[str, Any]]]]:
    """Of the routes that ask for a key."""
    for included in app.routes:
        router = getattr(included, "original_router", None)
        for route in router.routes if router else ():
            if isinstance(route, KeyedRoute):
                may: list[Mapping[str, Any]] = [{"key": []}]
                if not route.needs_key:
                    may.append({})
                for method in route.methods or ():
                    yield (method, route.path_format), may


def _named(value: Any) -> set[str]:
    """The models of :mod:`serving.api.answers` to which part of the document refers."""
    if isinstance(value, list):
        return set().union(*map(_named, value))
    if not isinstance(value, dict):
        return set()
    found = set().union(*map(_named, value.values()))
    if isinstance(reference := value.get("$ref"), str):
        found.add(reference.rpartition("/")[2])
    return found


def _add(schemas: dict[str, Any], name: str) -> None:
    model = getattr(answers, name, None)
    if model is None or name in schemas:
        return
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs", {})
    schemas[name] = schema


_MEANING = {
    200: "It was done.",
    400: "The request is malformed, or its body is not JSON.",
    401: "The key is missing or not valid.",
    402: "The month's budget has no room for it.",
    403: "The key's role, or the plan, does not allow it.",
    404: "It does not exist, or this key may not see it.",
    409: "Another request is doing it now; try again later.",
    408: "The body came too slowly.",
    413: "The body is too long.",
    415: "The body's type or encoding is not read.",
    422: "A field does not fit; `detail` says which.",
    429: "Too many requests; `Retry-After` says when to come again.",
    431: "The URL and headers are too long.",
    503: "It cannot be done just now; `Retry-After` says when to try again.",
}
