"""The base model of request bodies."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationInfo, field_validator


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
