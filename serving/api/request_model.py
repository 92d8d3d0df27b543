"""The base model of request bodies."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, get_args

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ValidationInfo, field_validator

_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def _check_date(value: object) -> object:
    if not isinstance(value, datetime) and not (isinstance(value, str) and _DATE.match(value)):
        raise ValueError("not an ISO 8601 time with a time zone, such as 2026-11-26T09:30:00Z")
    return value


#: pydantic alone would take numbers for seconds since 1970.
Instant = Annotated[AwareDatetime, BeforeValidator(_check_date)]


class RequestModel(BaseModel):
    """The base of request bodies; rejects booleans as numbers, which pydantic accepts."""

    @field_validator("*", mode="before")
    @classmethod
    def _reject_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            if annotation is not bool and bool not in get_args(annotation):
                raise ValueError("a boolean is not accepted here")
        return value
