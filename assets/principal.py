"""Who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

#: What a key may do: ``reader`` looks, ``member`` draws, uploads and changes too, ``owner``
#: also deletes and restores.
Role = Literal["reader", "member", "owner"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated tenant. ``weight`` is its share in the queue (1.0 is one share)."""

    tenant_id: str
    tenant_name: str
    weight: float = 1.0
    key_id: str = ""
    role: Role = "owner"
