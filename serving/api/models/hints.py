"""Hints of assets on the wire."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from assets.hints import Hints
from serving.api.request_model import RequestModel
from serving.generation.samplers import Sampler, Schedule

Template = Annotated[str, Field(max_length=2_000)]
#: As in a request.
Side = Annotated[int, Field(ge=64, le=16_384, multiple_of=8)]


class AssetHints(RequestModel):
    """What an asset advises where a request is silent. ``prompt`` is a template: ``{prompt}`` is
    the place of the request's own; without it the text follows the prompt."""

    model_config = ConfigDict(extra="forbid")

    sampler: Sampler | None = None
    schedule: Schedule | None = None
    steps: int | None = Field(default=None, gt=0, le=200)
    cfg_scale: float | None = Field(default=None, gt=0, le=50)
    clip_skip: int | None = Field(default=None, ge=1, le=12)
    width: Side | None = None
    height: Side | None = None
    prompt: Template | None = None
    negative_prompt: Template | None = None

    @model_validator(mode="after")
    def _both_sides(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("give both width and height, or neither")
        return self

    def hints(self) -> Hints:
        return Hints(**self.model_dump())
