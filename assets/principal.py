"""The authenticated caller of a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from assets.plan import UNLIMITED, Plan

#: ``reader`` reads; ``member`` also generates, uploads, updates; ``owner`` also shares, deletes,
#: restores and administers.
KeyRole = Literal["reader", "member", "owner"]
KEY_ROLES: tuple[KeyRole, ...] = get_args(KeyRole)
#: Without a key, ``anonymous`` uses public assets on an open tenant's account.
Role = Literal["anonymous"] | KeyRole
ROLES: tuple[Role, ...] = ("anonymous", *KEY_ROLES)


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated tenant (organisation) and its key's member and role.

    ``weight`` is its queue share; ``member_id`` is empty for the organisation's own keys.
    """

    tenant_id: str
    tenant_name: str
    weight: float = 1.0
    key_id: str = ""
    role: Role = "owner"
    member_id: str = ""
    plan: Plan = UNLIMITED
    #: Default of requests; empty: the platform's first.
    gpu: str = ""
    #: Default of requests: images have their parameters as metadata.
    image_metadata: bool = True

    @property
    def queue_id(self) -> str:
        """Of the queue, rate limit and share; anonymous requests have their own."""
        return f"{self.tenant_id}/anonymous" if self.role == "anonymous" else self.tenant_id
