"""API keys, and who it is that comes with one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import cast

from cachetools import TTLCache
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from assets.plan import UNLIMITED
from assets.principal import ROLES, Principal, Role
from serving.errors import InvalidRequest, Unauthenticated
from serving.tenants.audit import OPERATOR, note
from serving.tenants.finding import check_role, member_named, plan_of, tenant_named
from serving.tenants.keys import NewKey, key_id, matches, new_key
from serving.tenants.rows import ApiKeyRow, MemberRow, PlanRow, TenantRow

#: A revoked key stops working everywhere within this time.
KEY_CACHE_S = 3.0
_LONGEST_S = 100 * 365 * 24 * 3600.0


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
    member: str | None = None


class Keyring:
    """``actor`` is who does it, for the audit log: the operator, or a key's id."""

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now
        self._known: TTLCache[str, Principal] = TTLCache(maxsize=4096, ttl=KEY_CACHE_S)
        self._lock = Lock()

    def forget(self) -> None:
        """What this process knows of keys; others learn of a change within KEY_CACHE_S."""
        with self._lock:
            self._known.clear()

    def add_key(
        self,
        tenant: str,
        label: str = "",
        role: Role = "owner",
        expires_at_s: float | None = None,
        member: str | None = None,
        actor: str = OPERATOR,
    ) -> NewKey:
        """A new key for the tenant of that name; its text is never shown again.

        Raises:
            InvalidRequest: no such tenant, member or role, or an expiry that has passed.
        """
        check_role(role)
        if expires_at_s is not None and expires_at_s <= self._now():
            raise InvalidRequest("expires_at", "the key would have expired already")
        if expires_at_s is not None and expires_at_s > self._now() + _LONGEST_S:
            raise InvalidRequest("expires_at", "at most a hundred years from now; or leave it out")
        key = new_key()
        with Session(self._engine) as session, session.begin():
            row = tenant_named(session, tenant)
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
                    member_id=None if member is None else member_named(session, row.id, member).id,
                )
            )
            note(
                session, self._now(), row.id, actor, "key.create", key.id, role=role, member=member
            )
        return key

    def rotate_key(
        self, key: str, overlap_s: float, tenant: str | None = None, actor: str = OPERATOR
    ) -> NewKey:
        """A new key like that one, which expires after the overlap: time to put the new one
        in its place everywhere.

        Raises:
            InvalidRequest: no such key of the tenant, or one that is revoked or expired.
        """
        fresh = new_key()
        with Session(self._engine) as session, session.begin():
            row = self._key(session, key, tenant)
            if not self._is_live(row):
                raise InvalidRequest("key", f"there is no live key {key!r}")
            session.add(
                ApiKeyRow(
                    id=fresh.id,
                    tenant_id=row.tenant_id,
                    digest=fresh.digest,
                    label=row.label,
                    created_at_s=self._now(),
                    revoked_at_s=None,
                    role=row.role,
                    expires_at_s=row.expires_at_s,
                    member_id=row.member_id,
                )
            )
            end = self._now() + max(0.0, overlap_s)
            row.expires_at_s = end if row.expires_at_s is None else min(end, row.expires_at_s)
            note(
                session, self._now(), row.tenant_id, actor, "key.rotate", key, replaced_by=fresh.id
            )
        self.forget()
        return fresh

    def _key(self, session: Session, key: str, tenant: str | None) -> ApiKeyRow:
        row = session.get(ApiKeyRow, key)
        if row is not None and tenant is not None:
            row = row if row.tenant_id == tenant_named(session, tenant).id else None
        if row is None:
            raise InvalidRequest("key", f"there is no live key {key!r}")
        return row

    def revoke_key(self, key: str, tenant: str | None = None, actor: str = OPERATOR) -> None:
        """Raises InvalidRequest when there is no such key of the tenant."""
        with Session(self._engine) as session, session.begin():
            row = self._key(session, key, tenant)
            row.revoked_at_s = row.revoked_at_s or self._now()
            note(session, self._now(), row.tenant_id, actor, "key.revoke", key)
        self.forget()

    def keys(self, tenant: str) -> Sequence[ApiKey]:
        with Session(self._engine) as session:
            row = tenant_named(session, tenant)
            keys = session.execute(
                select(ApiKeyRow, MemberRow.name)
                .outerjoin(MemberRow, MemberRow.id == ApiKeyRow.member_id)
                .where(ApiKeyRow.tenant_id == row.id)
                .order_by(ApiKeyRow.created_at_s)
            )
            return [
                ApiKey(
                    k.id, tenant, k.label, k.created_at_s, k.revoked_at_s, cast(Role, k.role),
                    k.expires_at_s, member,
                )
                for k, member in keys
            ]  # fmt: skip

    def _is_live(self, row: ApiKeyRow) -> bool:
        expired = row.expires_at_s is not None and row.expires_at_s <= self._now()
        return row.revoked_at_s is None and not expired

    def authenticate(self, text: str | None) -> Principal:
        """Raises Unauthenticated unless ``text`` is a live key."""
        if not text:
            raise Unauthenticated("send your API key as 'Authorization: Bearer ao_…'")
        known = self.known(text)
        if known is not None:
            return known
        principal = self._authenticate(text)
        with self._lock:
            self._known[text] = principal
        return principal

    def known(self, text: str | None) -> Principal | None:
        """Whose key that is, as far as it can be said without asking the database."""
        with self._lock:
            return self._known.get(text or "")

    def _authenticate(self, text: str) -> Principal:
        short = key_id(text)
        if short is not None:
            with Session(self._engine) as session:
                row = session.get(ApiKeyRow, short)
                if row is not None and self._is_live(row) and matches(text, row.digest):
                    return _principal(session, session.get_one(TenantRow, row.tenant_id), row)
        raise Unauthenticated("this API key is not valid (unknown, malformed, expired or revoked)")

    def principal_of_tenant(self, name: str) -> Principal:
        """For doors that an operator has opened to a named tenant without a key."""
        with Session(self._engine) as session:
            return _principal(session, tenant_named(session, name))

    def principal_of_job(self, tenant_id: str, asked_by: Mapping[str, str]) -> Principal:
        """Who asked for a job that was accepted earlier, with today's plan.

        Raises:
            InvalidRequest: the tenant is gone.
        """
        with Session(self._engine) as session:
            tenant = session.get(TenantRow, tenant_id)
            if tenant is None:
                raise InvalidRequest("tenant", "the tenant of this job is gone")
            who = _principal(session, tenant)
            return replace(who, **asked_by)  # type: ignore[arg-type]


def _principal(session: Session, tenant: TenantRow, key: ApiKeyRow | None = None) -> Principal:
    plan = UNLIMITED
    if tenant.plan is not None:
        plan = plan_of(session.get_one(PlanRow, tenant.plan))
    weight = tenant.weight * plan.weight
    who = Principal(tenant.id, tenant.name, weight, plan=plan, gpu=tenant.gpu or "")
    if key is None:
        return who
    role = cast(Role, key.role)
    if key.member_id is not None:
        member = session.get_one(MemberRow, key.member_id)
        role = min(role, cast(Role, member.role), key=ROLES.index)
    return replace(who, key_id=key.id, role=role, member_id=key.member_id or "")
