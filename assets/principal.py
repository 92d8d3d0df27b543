"""Who is asking."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated tenant. ``weight`` is its share in the queue (1.0 is one share)."""

    tenant_id: str
    tenant_name: str
    weight: float = 1.0
    key_id: str = ""
