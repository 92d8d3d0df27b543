"""Who the tenants are, and whose key this is."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import cast

from cachetools import TTLCache
from sqlalchemy import Engine, ForeignKey, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from assets.asset import COMMONS
from assets.principal import ROLES, Principal, Role
from assets.sql.base import Base
from serving.errors import InvalidRequest, Unauthenticated
from serving.tenants.keys import NewKey, key_id, matches, new_key

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_RESERVED = (COMMONS, "octoai")

#: A revoked key stops working everywhere within this time.
KEY_CACHE_S = 3.0


class TenantRow(Base):
    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    weight: Mapped[float]
    created_at_s: Mapped[float]


class ApiKeyRow(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    digest: Mapped[str]
    label: Mapped[str]
    created_at_s: Mapped[float]
    revoked_at_s: Mapped[float | None]
    role: Mapped[str] = mapped_column(server_default="owner")
    expires_at_s: Mapped[float | None]


@dataclass(frozen=True, slots=True)
class Tenant:
    id: str
    name: str
    weight: float
    created_at_s: float


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret part."""

    id: str
    tenant: str
    label: str
    created_at_s: float
    revoked_at_s: float | None
    role: Role = "owner"
    expires_at_s: float | None = None


class Directory:
    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now
        self._known: TTLCache[str, Principal] = TTLCache(maxsize=4096, ttl=KEY_CACHE_S)
        self._lock = Lock()

    def add_tenant(self, name: str, weight: float = 1.0) -> Tenant:
        """Raises InvalidRequest when the name is malformed, reserved or taken."""
        if not _NAME.match(name) or name in _RESERVED:
            raise InvalidRequest(
                "name", f"{name!r} must be lower-case letters, digits and '-', and not reserved"
            )
        if not 0.0 < weight <= 1000.0:
            raise InvalidRequest("weight", "the weight must be above 0 and at most 1000")
        row = TenantRow(id=str(uuid.uuid4()), name=name, weight=weight, created_at_s=self._now())
        tenant = Tenant(row.id, row.name, row.weight, row.created_at_s)
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
        except IntegrityError:
            raise InvalidRequest("name", f"there is a tenant {name!r} already") from None
        return tenant

    def tenants(self) -> Sequence[Tenant]:
        with Session(self._engine) as session:
            rows = session.scalars(select(TenantRow).order_by(TenantRow.name))
            return [Tenant(r.id, r.name, r.weight, r.created_at_s) for r in rows]

    def add_key(
        self,
        tenant: str,
        label: str = "",
        role: Role = "owner",
        expires_at_s: float | None = None,
    ) -> NewKey:
        """A new key for the tenant of that name; its text is never shown again.

        Raises:
            InvalidRequest: no such tenant or role, or an expiry that has passed.
        """
        if role not in ROLES:
            raise InvalidRequest("role", f"{role!r} is no role; {', '.join(ROLES)} are")
        if expires_at_s is not None and expires_at_s <= self._now():
            raise InvalidRequest("expires_at_s", "the key would have expired already")
        key = new_key()
        with Session(self._engine) as session, session.begin():
            row = self._tenant(session, tenant)
            session.add(
                ApiKeyRow(
                    id=key.id,
                    tenant_id=row.id,
                    digest=key.digest,
                    label=label,
                    created_at_s=self._now(),
                    revoked_at_s=None,
                    role=role,
                    expires_at_s=expires_at_s,
                )
            )
        return key

    def rotate_key(self, key: str, overlap_s: float) -> NewKey:
        """A new key like that one, which expires after the overlap: time to put the new one
        in its place everywhere.

        Raises:
            InvalidRequest: no such key, or one that is revoked or expired.
        """
        with Session(self._engine) as session, session.begin():
            row = session.get(ApiKeyRow, key)
            if row is None or not self._is_live(row):
                raise InvalidRequest("key", f"there is no live key {key!r}")
            tenant = session.get(TenantRow, row.tenant_id)
            assert tenant is not None
            name, label, role, until = tenant.name, row.label, row.role, row.expires_at_s
        fresh = self.add_key(name, label, cast(Role, role), until)
        with Session(self._engine) as session, session.begin():
            row = session.get(ApiKeyRow, key)
            assert row is not None
            end = self._now() + max(0.0, overlap_s)
            row.expires_at_s = end if row.expires_at_s is None else min(end, row.expires_at_s)
        with self._lock:
            self._known.clear()
        return fresh

    def _is_live(self, row: ApiKeyRow) -> bool:
        expired = row.expires_at_s is not None and row.expires_at_s <= self._now()
        return row.revoked_at_s is None and not expired

    def keys(self, tenant: str) -> Sequence[ApiKey]:
        with Session(self._engine) as session:
            row = self._tenant(session, tenant)
            keys = session.scalars(select(ApiKeyRow).where(ApiKeyRow.tenant_id == row.id))
            return [
                ApiKey(
                    k.id, tenant, k.label, k.created_at_s, k.revoked_at_s, cast(Role, k.role),
                    k.expires_at_s,
                )
                for k in keys
            ]  # fmt: skip

    def revoke_key(self, key: str) -> None:
        with Session(self._engine) as session, session.begin():
            row = session.get(ApiKeyRow, key)
            if row is None:
                raise InvalidRequest("key", f"there is no key {key!r}")
            row.revoked_at_s = self._now()
        with self._lock:
            self._known.clear()

    def principal_of_tenant(self, name: str) -> Principal:
        """For doors that an operator has opened to a named tenant without a key."""
        with Session(self._engine) as session:
            row = self._tenant(session, name)
            return Principal(row.id, row.name, row.weight)

    def authenticate(self, text: str | None) -> Principal:
        """Raises Unauthenticated unless ``text`` is a live key."""
        if not text:
            raise Unauthenticated("send your API key as 'Authorization: Bearer ao_…'")
        with self._lock:
            known = self._known.get(text)
        if known is not None:
            return known
        principal = self._authenticate(text)
        with self._lock:
            self._known[text] = principal
        return principal

    def _authenticate(self, text: str) -> Principal:
        short = key_id(text)
        if short is not None:
            with Session(self._engine) as session:
                row = session.get(ApiKeyRow, short)
                if row is not None and self._is_live(row) and matches(text, row.digest):
                    tenant = session.get(TenantRow, row.tenant_id)
                    assert tenant is not None
                    role = cast(Role, row.role)
                    return Principal(tenant.id, tenant.name, tenant.weight, row.id, role)
        raise Unauthenticated("this API key is not valid (unknown, malformed, expired or revoked)")

    def _tenant(self, session: Session, name: str) -> TenantRow:
        row = session.scalars(select(TenantRow).where(TenantRow.name == name)).first()
        if row is None:
            raise InvalidRequest("tenant", f"there is no tenant {name!r}")
        return row
