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
from assets.principal import KEY_ROLES, KeyRole, Principal
from assets.text import is_storable
from serving.errors import InvalidRequest, NotFound, Unauthenticated
from serving.tenants.audit import OPERATOR, note
from serving.tenants.keys import NewKey, key_id, matches, new_key
from serving.tenants.lookups import check_role, member_named, plan_of, tenant_named
from serving.tenants.rows import ApiKeyRow, MemberRow, PlanRow, TenantRow

#: A revoked key stops working everywhere within this time.
KEY_CACHE_S = 3.0
_LONGEST_S = 100 * 365 * 24 * 3600.0
#: Images that anonymous requests, all together, have generated at a time.
_ANONYMOUS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret part."""

    id: str
    tenant: str
    label: str
    created_at_s: float
    revoked_at_s: float | None
    role: KeyRole = "owner"
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
        role: KeyRole = "owner",
        expires_at_s: float | None = None,
        member: str | None = None,
        actor: str = OPERATOR,
    ) -> NewKey:
        """A new key for the tenant of that name; its text is never shown again.

        Raises:
            InvalidRequest: no such tenant, member or role, or an expiry that has passed.
        """
        check_role(role)
        if not is_storable(label):
            raise InvalidRequest("label", "a label may not hold NUL or half of a character")
        if expires_at_s is not None and expires_at_s <= self._now():
            raise InvalidRequest("expires_at", "the key would have expired already")
        if expires_at_s is not None and expires_at_s > self._now() + _LONGEST_S:
            raise InvalidRequest("expires_at", "at most a hundred years from now; or leave it out")
        key = new_key()
        with Session(self._engine) as session, session.begin():
            row = tenant_named(session, tenant)
            try:
                of = None if member is None else member_named(session, row.id, member)
            except NotFound as none:  # a field of the new key, not what is asked for
                raise InvalidRequest("member", str(none)) from None
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
                    member_id=of and of.id,
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
            NotFound: no such key of the tenant.
            InvalidRequest: it is revoked or expired.
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
            raise NotFound("key", key)
        return row

    def revoke_key(self, key: str, tenant: str | None = None, actor: str = OPERATOR) -> None:
        """Raises NotFound when there is no such key of the tenant."""
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
                    k.id, tenant, k.label, k.created_at_s, k.revoked_at_s, cast(KeyRole, k.role),
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

    def anonymous(self, tenant: str, requests_per_min: int) -> Principal:
        """The principal of requests without a key, which an open tenant pays for. All of them share
        one rate.

        Raises:
            InvalidRequest: there is no such tenant.
        """
        with Session(self._engine) as session:
            who = _anonymous(_principal(session, tenant_named(session, tenant)))
        most = min(who.plan.requests_per_min or requests_per_min, requests_per_min)
        return replace(who, plan=replace(who.plan, requests_per_min=most))

    def principal_of_job(self, tenant_id: str, asked_by: Mapping[str, str]) -> Principal:
        """Who asked for a job that was accepted earlier, with today's plan and role.

        Raises:
            InvalidRequest: the tenant is gone.
            Unauthenticated: the key was revoked since.
        """
        with Session(self._engine) as session:
            tenant = session.get(TenantRow, tenant_id)
            if tenant is None:
                raise InvalidRequest("tenant", "the tenant of this job is gone")
            if asked_by.get("role") == "anonymous":
                return _anonymous(_principal(session, tenant))
            key = session.get(ApiKeyRow, asked_by.get("key_id", ""))
            if key is None:  # asked for in this process, with no key
                return replace(_principal(session, tenant), **asked_by)  # type: ignore[arg-type]
            if key.revoked_at_s is not None:
                raise Unauthenticated("the key that asked for this was revoked")
            return _principal(session, tenant, key)


def _anonymous(of: Principal) -> Principal:
    """With the open tenant's budget."""
    most = min(of.plan.concurrent_pictures or _ANONYMOUS_AT_ONCE, _ANONYMOUS_AT_ONCE)
    return replace(of, role="anonymous", plan=replace(of.plan, concurrent_pictures=most))


def _principal(session: Session, tenant: TenantRow, key: ApiKeyRow | None = None) -> Principal:
    plan = UNLIMITED
    if tenant.plan is not None:
        plan = plan_of(session.get_one(PlanRow, tenant.plan))
    weight = tenant.weight * plan.weight
    who = Principal(tenant.id, tenant.name, weight, plan=plan, gpu=tenant.gpu or "")
    if key is None:
        return who
    role = cast(KeyRole, key.role)
    if key.member_id is not None:
        member = session.get_one(MemberRow, key.member_id)
        role = min(role, cast(KeyRole, member.role), key=KEY_ROLES.index)
    return replace(who, key_id=key.id, role=role, member_id=key.member_id or "")
