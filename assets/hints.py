"""Hints of an asset: what its author advises where a request is silent.

A style is an asset that has hints alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

HintValue = str | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """Advice of a version; None: none. Names of samplers and schedules are the platform's.

    ``prompt`` is a template with the place ``{prompt}``; sizes are in pixels.
    """

    sampler: str | None = None
    schedule: str | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    clip_skip: int | None = None
    width: int | None = None
    height: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, object] | None) -> Hints:
        """Fields of a later release are left out."""
        known: dict[str, Any] = {}
        for field in fields(cls):
            if value is not None and value.get(field.name) is not None:
                known[field.name] = value[field.name]
        return cls(**known)

    def to_json(self) -> dict[str, HintValue]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __bool__(self) -> bool:
        return bool(self.to_json())
