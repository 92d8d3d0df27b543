"""API keys: creation, rotation, revocation and authentication."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock

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

#: Revoked keys stop working everywhere within this time.
KEY_CACHE_S = 3.0
_MAX_LIFETIME_S = 100 * 365 * 24 * 3600.0
#: Of all anonymous requests together.
_ANONYMOUS_IMAGES = 4


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without its secret."""

    id: str
    tenant: str
    label: str
    created_at_s: float
    revoked_at_s: float | None
    role: KeyRole = "owner"
    expires_at_s: float | None = None
    member: str | None = None


class Keyring:
    """The API keys, cached; ``actor`` is OPERATOR or a key's id."""

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now
        self._known: TTLCache[str, Principal] = TTLCache(maxsize=4096, ttl=KEY_CACHE_S)
        self._lock = Lock()

    def forget(self) -> None:
        """Clear this process's cache; others expire within KEY_CACHE_S."""
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
        """Create a key; its text is not stored.

        Raises:
            InvalidRequest: unknown tenant, member or role; unstorable label; bad expiry.
        """
        check_role(role)
        if not is_storable(label):
            raise InvalidRequest("label", "the label contains NUL or a lone surrogate")
        if expires_at_s is not None and expires_at_s <= self._now():
            raise InvalidRequest("expires_at", "expires_at is in the past")
        if expires_at_s is not None and expires_at_s > self._now() + _MAX_LIFETIME_S:
            raise InvalidRequest(
                "expires_at", "expires_at is over a hundred years away; leave it out"
            )
        key = new_key()
        with Session(self._engine) as session, session.begin():
            row = tenant_named(session, tenant)
            try:
                member_row = None if member is None else member_named(session, row.id, member)
            except NotFound as error:  # not a missing resource
                raise InvalidRequest("member", str(error)) from None
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
                    member_id=member_row and member_row.id,
                )
            )
            note(
                session, self._now(), row.id, actor, "key.create", key.id, role=role, member=member
            )
        return key

    def rotate_key(
        self, key: str, overlap_s: float, tenant: str | None = None, actor: str = OPERATOR
    ) -> NewKey:
        """Replace a key, which expires in ``overlap_s`` seconds.

        Raises:
            NotFound: no such key.
            InvalidRequest: revoked or expired.
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
        """Revoke a key. Raises NotFound."""
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
                    k.id, tenant, k.label, k.created_at_s, k.revoked_at_s, k.role,
                    k.expires_at_s, member,
                )
                for k, member in keys
            ]  # fmt: skip

    def _is_live(self, row: ApiKeyRow) -> bool:
        expired = row.expires_at_s is not None and row.expires_at_s <= self._now()
        return row.revoked_at_s is None and not expired

    def authenticate(self, text: str | None) -> Principal:
        """Return a live key's principal. Raises Unauthenticated."""
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
        """Return a cached key's principal."""
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
        """Return the principal of keyless requests, which share a rate limit.

        Raises:
            InvalidRequest: no such tenant.
        """
        with Session(self._engine) as session:
            principal = _anonymous(_principal(session, tenant_named(session, tenant)))
        limit = min(principal.plan.requests_per_min or requests_per_min, requests_per_min)
        return replace(principal, plan=replace(principal.plan, requests_per_min=limit))

    def principal_of_job(self, tenant_id: str, asked_by: Mapping[str, str]) -> Principal:
        """Return a job's principal, with current plan and role.

        Raises:
            InvalidRequest: the tenant no longer exists.
            Unauthenticated: the key was revoked.
        """
        with Session(self._engine) as session:
            tenant = session.get(TenantRow, tenant_id)
            if tenant is None:
                raise InvalidRequest("tenant", "the tenant of this job does not exist any more")
            if asked_by.get("role") == "anonymous":
                return _anonymous(_principal(session, tenant))
            key = session.get(ApiKeyRow, asked_by.get("key_id", ""))
            if key is None:  # submitted in-process
                return replace(_principal(session, tenant), **asked_by)  # type: ignore[arg-type]
            if key.revoked_at_s is not None:
                raise Unauthenticated("the API key that submitted this job was revoked")
            return _principal(session, tenant, key)


def _anonymous(tenant: Principal) -> Principal:
    limit = min(tenant.plan.concurrent_pictures or _ANONYMOUS_IMAGES, _ANONYMOUS_IMAGES)
    plan = replace(tenant.plan, concurrent_pictures=limit)
    return replace(tenant, role="anonymous", plan=plan)


def _principal(session: Session, tenant: TenantRow, key: ApiKeyRow | None = None) -> Principal:
    plan = UNLIMITED
    if tenant.plan is not None:
        plan = plan_of(session.get_one(PlanRow, tenant.plan))
    weight = tenant.weight * plan.weight
    principal = Principal(
        tenant.id,
        tenant.name,
        weight,
        plan=plan,
        gpu=tenant.gpu or "",
        image_metadata=tenant.image_metadata is not False,
    )
    if key is None:
        return principal
    role = key.role
    if key.member_id is not None:
        member = session.get_one(MemberRow, key.member_id)
        role = min(role, member.role, key=KEY_ROLES.index)
    return replace(principal, key_id=key.id, role=role, member_id=key.member_id or "")
