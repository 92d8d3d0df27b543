"""The authenticated caller of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from assets.plan import UNLIMITED, Plan

#: ``reader`` may only read; ``member`` also generates, uploads and updates; ``owner`` also shares,
#: deletes, restores and administers the organisation.
KeyRole = Literal["reader", "member", "owner"]
KEY_ROLES: tuple[KeyRole, ...] = get_args(KeyRole)
#: ``anonymous`` sends no key: it generates with public assets, on the account of an open tenant.
Role = Literal["anonymous"] | KeyRole
ROLES: tuple[Role, ...] = ("anonymous", *KEY_ROLES)


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated tenant (an organisation) and the member and role of the key.

    ``weight`` is the tenant's share of the queue; the default is 1.0. ``member_id`` is empty for a
    key that belongs to the organisation itself, such as an application's.
    """

    tenant_id: str
    tenant_name: str
    weight: float = 1.0
    key_id: str = ""
    role: Role = "owner"
    member_id: str = ""
    plan: Plan = UNLIMITED
    #: The ``gpu`` used when a request names none; empty for the platform's first.
    gpu: str = ""

    @property
    def queue_id(self) -> str:
        """The key of the request's queue, rate limit and share; anonymous requests have their
        own."""
        return f"{self.tenant_id}/anonymous" if self.role == "anonymous" else self.tenant_id
