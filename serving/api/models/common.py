"""What bodies of all topics use: errors and times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, Field

#: ISO 8601 in UTC.
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


def timestamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()


class ErrorDetail(BaseModel):
    """An invalid field."""

    loc: list[str | int]
    msg: str
    type: str


class Error(BaseModel):
    """The body of every error; only 422s have ``detail``."""

    code: str
    message: str
    request_id: str
    detail: list[ErrorDetail] | None = None
