"""The OpenAPI document: FastAPI's own, with security, errors and examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from serving.api.errors import codes_of
from serving.api.examples import EXAMPLES, REQUEST_ID
from serving.api.keyed_route import KeyedRoute
from serving.api.models.common import Error, ErrorDetail
from serving.api.route_options import Json

_JSON = "application/json"
#: Of all routes; of routes with a key; of routes with a body; of routes that generate.
_ANY, _KEYED = (400, 403, 404, 422, 431, 503), (401, 429)
_WITH_BODY = (402, 408, 409, 413, 415)
_RANGES = (416,)
_GENERATING = (402, 409, 413, 429, 499, 500, 501, 504)


def install(app: FastAPI) -> None:
    """Replace the application's OpenAPI document."""

    def document() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # the documented way to extend it


def _document(app: FastAPI) -> Json:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for model in (Error, ErrorDetail):
        schemas[model.__name__] = _schema(model)
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    errors = sorted({*_ANY, *_KEYED, *_WITH_BODY, *_GENERATING, *_RANGES})
    document["components"]["responses"] = {f"Error{status}": _error(status) for status in errors}
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    keyed = dict(_keyed_routes(app))
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete(operation, keyed.get((method.upper(), path)))
    return document


def _schema(model: type[BaseModel]) -> Json:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def _complete(operation: Json, route: KeyedRoute | None) -> None:
    operation["security"] = _security(route)
    statuses = {*_ANY, *(_KEYED if route is not None else ())}
    statuses |= {*(_WITH_BODY if "requestBody" in operation else ())}
    # A failed job's result is its error.
    is_result = operation["operationId"] == "get_job_result"
    is_generating = is_result or (route is not None and route.is_costly)
    statuses |= {*(_GENERATING if is_generating else ())}
    responses = operation["responses"]
    statuses |= {*(_RANGES if "206" in responses else ())}
    responses.pop("422", None)  # FastAPI's unused error model
    for status, response in responses.items():
        response["description"] = _MEANING[int(status)]
        _add_examples(response)
    for status in statuses:
        responses.setdefault(str(status), {"$ref": f"#/components/responses/Error{status}"})
    _add_examples(operation.get("requestBody", {}))
    operation["responses"] = dict(sorted(responses.items()))


def _security(route: KeyedRoute | None) -> list[dict[str, list[str]]]:
    if route is None:
        return []
    return [{"key": []}] if route.needs_key else [{"key": []}, {}]


def _error(status: int) -> Json:
    schema = {"$ref": f"#/components/schemas/{Error.__name__}"}
    examples = {
        code: {"value": {"code": code, "message": _MEANING[status], "request_id": REQUEST_ID}}
        for code in codes_of(status)
    }
    content = {_JSON: {"schema": schema, "examples": examples}}
    return {"description": _MEANING[status], "content": content}


def _add_examples(described: Json) -> None:
    """Add the examples of the models that a request or response refers to."""
    content = described.get("content", {}).get(_JSON, {})
    for name in _model_names(content.get("schema")):
        if name in EXAMPLES and "examples" not in content:
            content["example"] = EXAMPLES[name].model_dump(mode="json", exclude_unset=True)


def _keyed_routes(app: FastAPI) -> Iterator[tuple[tuple[str, str], KeyedRoute]]:
    for included in app.routes:
        router = getattr(included, "original_router", None)
        for route in router.routes if router else ():
            if isinstance(route, KeyedRoute):
                for method in route.methods or ():
                    yield (method, route.path_format), route


def _model_names(schema: object) -> Iterator[str]:
    """Names of the models that a schema refers to, itself or as an alternative."""
    if isinstance(schema, dict):
        described = cast(Json, schema)
        if "$ref" in described:
            yield described["$ref"].rpartition("/")[2]
        for alternative in described.get("anyOf", ()):
            yield from _model_names(alternative)


_MEANING = {
    200: "Success.",
    206: "The rest of the file, from the wanted byte on.",
    400: "The request is malformed, or its body is not JSON.",
    401: "The key is missing or not valid.",
    402: "The month's budget does not cover the request.",
    403: "The key's role, or the plan, does not allow it.",
    404: "The object does not exist, or this key may not see it.",
    408: "The body arrived too slowly.",
    409: "A concurrent request does the same; retry later.",
    413: "The body is too large.",
    415: "The body's content type or encoding is not supported.",
    416: "The file ends before the wanted byte.",
    422: "A field is invalid; `detail` names it.",
    429: "Too many requests; `Retry-After` says when to retry.",
    431: "The URL and headers are too large.",
    499: "The generation was cancelled.",
    500: "The generation failed; it was not charged.",
    501: "A feature of the original API that this platform does not have.",
    503: "Temporarily unavailable; `Retry-After` says when to retry.",
    504: "The generation took too long.",
}
