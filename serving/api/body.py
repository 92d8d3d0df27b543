"""A request's JSON: parsed under bounds before any model looks at it.

Models report every fault that they find: 300,000 wrong elements are 300,000 errors. So the
number of elements, the depth, and what a text or a number may be are checked here, once, for
every route.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from fastapi import Request
from starlette.exceptions import HTTPException

from assets.text import is_storable
from serving.errors import InvalidRequest

#: In the body of any model; each model's own limits are lower.
MAX_ELEMENTS = 2_000
MAX_DEPTH = 16
#: Of commas and brackets, before anything is parsed: parsing a megabyte of them keeps every other
#: thread waiting. Prompts hold some, too.
MAX_MARKS = 20_000
MAX_INTEGER = 2**63 - 1


class JsonRequest(Request):
    """A request whose JSON is parsed within bounds."""

    _document: Any = None

    async def json(self) -> Any:
        """The document that :meth:`parse` found; None where the body is empty."""
        return self._document

    async def parse(self) -> None:
        """Read, parse and check the body.

        Raises:
            HTTPException: 415, a content type that is not read; 400, no JSON.
            InvalidRequest: JSON that no model here can mean.
        """
        text = await self.body()
        if not text:
            return
        kind = _media_type(self.headers.get("content-type"))
        if kind != "application/json" and not re.fullmatch(r"application/\S+\+json", kind):
            raise HTTPException(
                415, f"the body is {kind[:80]}; send Content-Type: application/json"
            )
        if sum(map(text.count, (b",", b"[", b"{"))) > MAX_MARKS:
            raise InvalidRequest("body", f"more than {MAX_ELEMENTS} elements")
        try:
            document = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise HTTPException(400, f"the body is not JSON: {reason}") from None
        _check(document)
        self._document = document


def _media_type(content_type: str | None) -> str:
    """Without its parameters; JSON where the client names none."""
    return (content_type or "application/json").partition(";")[0].strip().lower()


def _no_number(name: str) -> NoReturn:
    raise InvalidRequest("body", f"{name} is not a number")


def _check(document: Any) -> None:
    """Raises InvalidRequest."""
    rest: list[tuple[Any, int]] = [(document, 0)]
    elements = 0
    while rest:
        value, depth = rest.pop()
        if isinstance(value, str):
            if not is_storable(value):
                raise InvalidRequest("body", "a text holds NUL or half of a character")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise InvalidRequest("body", "a number is too large")
        elif isinstance(value, int):
            if not -MAX_INTEGER <= value <= MAX_INTEGER:
                raise InvalidRequest("body", "a number is too large")
        elif isinstance(value, list | dict):
            elements += len(value)
            if elements > MAX_ELEMENTS:
                raise InvalidRequest("body", f"more than {MAX_ELEMENTS} elements")
            if depth == MAX_DEPTH:
                raise InvalidRequest("body", f"nested more than {MAX_DEPTH} deep")
            if isinstance(value, dict):
                rest += [(key, depth + 1) for key in value]
                rest += [(each, depth + 1) for each in value.values()]
            else:
                rest += [(each, depth + 1) for each in value]
