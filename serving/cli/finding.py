"""The result of one check of ``doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. ``remedy`` is empty when there is nothing to do."""

    what: str
    state: State
    found: str
    remedy: str = ""
