"""The result of a check of ``doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A check's result; ``remedy`` may be empty."""

    what: str
    state: State
    found: str
    remedy: str = ""
