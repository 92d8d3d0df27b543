"""What routes declare for the OpenAPI document beyond their signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from fastapi import Response
from pydantic import BaseModel

#: A part of the document, as FastAPI makes it.
Json = dict[str, Any]

_BINARY = {"type": "string", "format": "binary"}
#: ASCII; HTTP strips spaces at both ends.
_PRINTABLE = "^[!-~]([ -~]*[!-~])?$"
#: A server-sent event.
_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string"},
        "retry": {"type": "integer"},
    },
}


class RouteOptions(TypedDict):
    """Keyword arguments of a route's decorator."""

    response_model: None
    responses: dict[int | str, Json]


class FileRouteOptions(RouteOptions):
    response_class: type[Response]


def answers_with(model: type[BaseModel], *statuses: int) -> RouteOptions:
    """Return the decorator arguments of a route that renders ``model`` itself."""
    described: dict[int | str, Json] = {status: {"model": model} for status in statuses or (200,)}
    return {"response_model": None, "responses": described}


def answers_or_streams(model: type[BaseModel], events: str) -> RouteOptions:
    """Return the decorator arguments of a route that responds with ``model``, or server-sent events
    such as ``events``."""
    content = _stream(events)
    return {"response_model": None, "responses": {200: {"model": model, "content": content}}}


def streams(events: str) -> FileRouteOptions:
    """Return the decorator arguments of a route that responds with server-sent events."""
    return _answers(_stream(events), (200,))


def _stream(events: str) -> Json:
    return {"text/event-stream": {"schema": _EVENT, "example": events}}


def answers_bytes(*media_types: str, statuses: Sequence[int] = (200,)) -> FileRouteOptions:
    """Return the decorator arguments of a route that responds with a file."""
    return _answers({media_type: {"schema": _BINARY} for media_type in media_types}, statuses)


def answers_text(media_type: str, example: str) -> FileRouteOptions:
    """Return the decorator arguments of a route that responds with text."""
    return _answers({media_type: {"schema": {"type": "string"}, "example": example}}, (200,))


def _answers(content: Json, statuses: Sequence[int]) -> FileRouteOptions:
    described: dict[int | str, Json] = {status: {"content": content} for status in statuses}
    return {"response_model": None, "response_class": Response, "responses": described}


def reads_bytes(*media_types: str) -> Json:
    """Return the ``openapi_extra`` of a file body."""
    content = {media_type: {"schema": _BINARY} for media_type in media_types}
    return {"requestBody": {"content": content, "required": True}}


def reads_headers(**described: str) -> Json:
    """Return the ``openapi_extra`` of headers, with underscores for dashes."""
    return {
        "parameters": [
            {
                "name": name.replace("_", "-"),
                "in": "header",
                "required": False,
                "description": text,
                "schema": {"type": "string", "maxLength": 255, "pattern": _PRINTABLE},
            }
            for name, text in described.items()
        ]
    }
