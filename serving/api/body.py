"""Parsing of JSON bodies within limits, before any model validates them.

Models report every error: 300,000 invalid elements are 300,000 errors.
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

#: Each model's own limits are lower.
MAX_ELEMENTS = 2_000
MAX_DEPTH = 16
#: Commas and brackets: parsing a megabyte of them blocks all threads. Prompts contain some.
MAX_MARKS = 20_000
MAX_INTEGER = 2**63 - 1
#: Of seeds.
_MAX_UNSIGNED = 2**64 - 1


class JsonRequest(Request):
    """A request whose JSON body is parsed within limits."""

    _document: object = None

    async def json(self) -> Any:
        """Return the parsed document; None if the body is empty."""
        return self._document

    async def parse(self) -> None:
        """Read, parse and check the body.

        Raises:
            HTTPException: 415, not a JSON content type; 400, not JSON.
            InvalidRequest: the JSON exceeds a limit.
        """
        text = await self.body()
        if not text:
            return
        kind = _media_type(self.headers.get("content-type"))
        if kind != "application/json" and not re.fullmatch(r"application/\S+\+json", kind):
            raise HTTPException(
                415, f"Content-Type {kind[:80]} is not supported; send application/json"
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
    return (content_type or "application/json").partition(";")[0].strip().lower()


def _no_number(name: str) -> NoReturn:
    raise InvalidRequest("body", f"{name} is not a JSON number")


def _check(document: object) -> None:
    pending: list[tuple[object, int]] = [(document, 0)]
    elements = 0
    while pending:
        value, depth = pending.pop()
        if isinstance(value, str):
            if not is_storable(value):
                raise InvalidRequest("body", "a string contains NUL or a lone surrogate")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise InvalidRequest("body", "a number is too large")
        elif isinstance(value, int):
            if not -MAX_INTEGER <= value <= _MAX_UNSIGNED:
                raise InvalidRequest("body", "a number is too large")
        elif isinstance(value, list | dict):
            elements += len(value)
            if elements > MAX_ELEMENTS:
                raise InvalidRequest("body", f"more than {MAX_ELEMENTS} elements")
            if depth == MAX_DEPTH:
                raise InvalidRequest("body", f"nested more than {MAX_DEPTH} deep")
            if isinstance(value, dict):
                pending += [(key, depth + 1) for key in value]
                pending += [(item, depth + 1) for item in value.values()]
            else:
                pending += [(item, depth + 1) for item in value]
