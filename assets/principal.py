"""Who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from assets.plan import UNLIMITED, Plan

#: What a key may do: ``reader`` looks, ``member`` draws, uploads and changes too, ``owner``
#: also shares, deletes, restores and administers its organisation.
KeyRole = Literal["reader", "member", "owner"]
KEY_ROLES: tuple[KeyRole, ...] = get_args(KeyRole)
#: ``anonymous`` sends no key: it generates with public assets for a tenant that is open.
Role = Literal["anonymous"] | KeyRole
ROLES: tuple[Role, ...] = ("anonymous", *KEY_ROLES)


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated tenant, which is an organisation, and who of it.

    ``weight`` is its share in the queue (1.0 is one share). ``member_id`` is empty for a key
    that belongs to the organisation itself, as an application's does.
    """

    tenant_id: str
    tenant_name: str
    weight: float = 1.0
    key_id: str = ""
    role: Role = "owner"
    member_id: str = ""
    plan: Plan = UNLIMITED
    #: The GPUs that it draws on when a request does not say; empty for the platform's first.
    gpu: str = ""

    @property
    def queue_id(self) -> str:
        """Identifies the queue, rate and share of a request; anonymous requests have their own."""
        return f"{self.tenant_id}/anonymous" if self.role == "anonymous" else self.tenant_id
