"""Bodies of styles."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from serving.api.dialects.octoai.assets import Name
from serving.api.models.hints import Template
from serving.api.request_model import RequestModel


class StyleInfo(BaseModel):
    """A style: ``{prompt}`` is the place of the request's prompt. ``asset_id``: null: built in."""

    name: str
    prompt: str
    negative_prompt: str
    version: int
    asset_id: str | None = None


class Styles(BaseModel):
    """Built-in styles and the organisation's own; ``next`` is the next ``after``."""

    styles: list[StyleInfo]
    next: str | None


class NewStyle(RequestModel):
    """A style of the organisation. ``new_version`` changes an existing one."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    prompt: Template = "{prompt}"
    negative_prompt: Template = ""
    description: Annotated[str, Field(max_length=4096)] = ""
    new_version: bool = False
