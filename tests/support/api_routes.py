"""The API's operations and fields, from its OpenAPI document.

Tests that iterate over them cover new ones automatically.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

Schema = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """A method and path with its JSON schemas."""

    method: str
    path: str
    path_fields: dict[str, Schema]
    query_fields: dict[str, Schema]
    body: Schema | None
    #: The schema of a 200; None if not JSON.
    answer: Schema | None = None

    def url(self, **values: str) -> str:
        """Fill in the path's fields, "x" by default."""
        url = self.path
        for name in self.path_fields:
            url = url.replace("{" + name + "}", values.get(name, "x"))
        return url

    def example_body(self) -> Any:
        """Return a small body, probably valid; None without a body."""
        return None if self.body is None else example(self.body)

    def every_schema(self) -> Iterator[tuple[str, Schema]]:
        """Yield places and schemas of values of queries and body, at any depth.

        The limit on a request's head bounds path fields.
        """
        for name, schema in self.query_fields.items():
            yield from _inside(schema, name)
        if self.body is not None:
            yield from _inside(self.body, "body")

    def body_fields(self) -> dict[str, Schema]:
        for schema in _alternatives(self.body or {}):
            if "properties" in schema:
                return dict(schema["properties"])
        return {}


def operations(app: FastAPI) -> list[Operation]:
    document = app.openapi()
    result = []
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            fields: dict[str, dict[str, Schema]] = {"path": {}, "query": {}}
            for parameter in described.get("parameters", ()):
                if parameter["in"] in fields:
                    schema = _dereference(parameter["schema"], document)
                    fields[parameter["in"]][parameter["name"]] = schema
            content = described.get("requestBody", {}).get("content", {})
            body = content.get("application/json", {}).get("schema")
            result.append(
                Operation(
                    method.upper(),
                    path,
                    fields["path"],
                    fields["query"],
                    None if body is None else _dereference(body, document),
                    _answer(described, document),
                )
            )
    return result


def _answer(described: Schema, document: Schema) -> Schema | None:
    content = described["responses"].get("200", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema")
    return None if schema is None else _dereference(schema, document)


def example(schema: Schema) -> Any:
    """Return the smallest value that is probably valid."""
    for alternative in _alternatives(schema):
        if alternative.get("type") == "null":
            continue
        if "enum" in alternative:
            return alternative["enum"][0]
        match alternative.get("type"):
            case "object":
                required = alternative.get("required", ())
                return {name: example(alternative["properties"][name]) for name in required}
            case "array":
                return []
            case "integer" | "number":
                return max(1, alternative.get("minimum", 1))
            case "boolean":
                return False
        return alternative.get("default", "lora")
    return None


def _alternatives(schema: Schema) -> list[Schema]:
    return list(schema.get("anyOf", [schema]))


def _inside(schema: Schema, place: str) -> Iterator[tuple[str, Schema]]:
    for alternative in _alternatives(schema):
        yield place, alternative
        for name, inner in alternative.get("properties", {}).items():
            yield from _inside(inner, f"{place}.{name}")
        if "items" in alternative:
            yield from _inside(alternative["items"], f"{place}[]")
        if isinstance(alternative.get("additionalProperties"), dict):
            yield from _inside(alternative["additionalProperties"], f"{place}{{}}")


def _dereference(value: Any, document: Schema) -> Any:
    if isinstance(value, list):
        return [_dereference(item, document) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _dereference(
            document["components"]["schemas"][value["$ref"].rpartition("/")[2]], document
        )
    return {name: _dereference(item, document) for name, item in value.items()}
