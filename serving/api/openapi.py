"""The OpenAPI document: FastAPI's own, with security, errors and response models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from serving.api import response_models as response_models
from serving.api.keyed_route import KeyedRoute
from serving.api.response_models import Error

_BINARY = {"type": "string", "format": "binary"}
_JSON = "application/json"
#: Of all routes; of routes with a key; of routes with a body.
_ANY, _KEYED = (400, 403, 404, 422, 431, 503), (401, 429)
_WITH_BODY = (402, 408, 409, 413, 415)


class RouteOptions(TypedDict):
    """Keyword arguments of a route's decorator."""

    response_model: None
    responses: dict[int | str, dict[str, Any]]


class FileRouteOptions(RouteOptions):
    response_class: type[Response]


def answers_with(model: type[BaseModel], *, statuses: Sequence[int] = (200,)) -> RouteOptions:
    """Return the decorator arguments of a route that responds with ``model``."""
    content = {_JSON: {"schema": _reference(model)}}
    return {
        "response_model": None,
        "responses": {status: {"content": content} for status in statuses},
    }


def answers_bytes(*media_types: str) -> FileRouteOptions:
    """Return the decorator arguments of a route that responds with a file."""
    content = {media_type: {"schema": _BINARY} for media_type in media_types}
    return {
        "response_model": None,
        "response_class": Response,
        "responses": {200: {"content": content}},
    }


def reads_bytes(*media_types: str) -> dict[str, Any]:
    """Return the ``openapi_extra`` of a file body."""
    content = {media_type: {"schema": _BINARY} for media_type in media_types}
    return {"requestBody": {"content": content, "required": True}}


def reads_headers(**described: str) -> dict[str, Any]:
    """Return the ``openapi_extra`` of headers, with underscores for dashes."""
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
    """Replace the application's OpenAPI document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # the documented way to extend it


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for model in sorted(_model_names(document["paths"]) | {"Error"}):
        _add(schemas, model)
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    keyed = dict(_security(app))
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete(operation, keyed.get((method.upper(), path)))
    return document


def _complete(operation: dict[str, Any], security: list[Mapping[str, Any]] | None) -> None:
    operation["security"] = security or []
    statuses = (*_ANY, *(_KEYED if security else ()))
    statuses += _WITH_BODY if "requestBody" in operation else ()
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's unused error model
    for status in statuses:
        content = {_JSON: {"schema": _reference(Error)}}
        error = {"description": _MEANING[status], "content": content}
        responses.setdefault(str(status), error)
    for status, response in responses.items():
        response.setdefault("description", _MEANING.get(int(status), "Success."))
    operation["responses"] = dict(sorted(responses.items()))


def _security(app: FastAPI) -> Iterator[tuple[tuple[str, str], list[Mapping[str, Any]]]]:
    for included in app.routes:
        router = getattr(included, "original_router", None)
        for route in router.routes if router else ():
            if isinstance(route, KeyedRoute):
                requirements: list[Mapping[str, Any]] = [{"key": []}]
                if not route.needs_key:
                    requirements.append({})
                for method in route.methods or ():
                    yield (method, route.path_format), requirements


def _model_names(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_model_names, value))
    if not isinstance(value, dict):
        return set()
    names = set().union(*map(_model_names, value.values()))
    if isinstance(reference := value.get("$ref"), str):
        names.add(reference.rpartition("/")[2])
    return names


def _add(schemas: dict[str, Any], name: str) -> None:
    model = getattr(response_models, name, None)
    if model is None or name in schemas:
        return
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs", {})
    schemas[name] = schema


_MEANING = {
    200: "Success.",
    400: "The request is malformed, or its body is not JSON.",
    401: "The key is missing or not valid.",
    402: "The month's budget does not cover the request.",
    403: "The key's role, or the plan, does not allow it.",
    404: "The object does not exist, or this key may not see it.",
    409: "A concurrent request does the same; retry later.",
    408: "The body arrived too slowly.",
    413: "The body is too large.",
    415: "The body's content type or encoding is not supported.",
    422: "A field is invalid; `detail` names it.",
    429: "Too many requests; `Retry-After` says when to retry.",
    431: "The URL and headers are too large.",
    503: "Temporarily unavailable; `Retry-After` says when to retry.",
}
