"""Who the tenants are, what they may use, who their members are, and whose key this is."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, cast

from cachetools import TTLCache
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from assets.asset import COMMONS
from assets.ids import ulid
from assets.plan import UNLIMITED, Plan
from assets.principal import ROLES, Principal, Role
from serving.errors import InvalidRequest, Unauthenticated
from serving.tenants.audit import OPERATOR, note
from serving.tenants.keys import NewKey, key_id, matches, new_key
from serving.tenants.rows import ApiKeyRow, MemberRow, PlanRow, TenantRow

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_MEMBER = re.compile(r"[^\s/]{1,128}\Z")
_LIMITS = (
    "requests_per_min", "concurrent_pictures", "storage_bytes", "assets", "gpu_s_per_month",
)  # fmt: skip
_RESERVED = (COMMONS, "octoai")

#: A revoked key stops working everywhere within this time.
KEY_CACHE_S = 3.0


@dataclass(frozen=True, slots=True)
class Tenant:
    id: str
    name: str
    weight: float
    created_at_s: float
    plan: str = UNLIMITED.name


@dataclass(frozen=True, slots=True)
class Member:
    """``role`` bounds what the member's keys may do."""

    id: str
    name: str
    role: Role
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
    member: str | None = None


class Directory:
    """``actor`` is who does it, for the audit log: the operator, or a key's id."""

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now
        self._known: TTLCache[str, Principal] = TTLCache(maxsize=4096, ttl=KEY_CACHE_S)
        self._lock = Lock()

    def add_tenant(
        self, name: str, weight: float = 1.0, plan: str | None = None, actor: str = OPERATOR
    ) -> Tenant:
        """Raises InvalidRequest when the name is malformed, reserved or taken."""
        if not _NAME.match(name) or name in _RESERVED:
            raise InvalidRequest(
                "name", f"{name!r} must be lower-case letters, digits and '-', and not reserved"
            )
        if not 0.0 < weight <= 1000.0:
            raise InvalidRequest("weight", "the weight must be above 0 and at most 1000")
        row = TenantRow(id=str(uuid.uuid4()), name=name, weight=weight, created_at_s=self._now())
        tenant = Tenant(row.id, row.name, row.weight, row.created_at_s, plan or UNLIMITED.name)
        try:
            with Session(self._engine) as session, session.begin():
                row.plan = _plan_name(session, plan)
                session.add(row)
                self._note(session, tenant.id, actor, "tenant.create", name, plan=tenant.plan)
        except IntegrityError:
            raise InvalidRequest("name", f"there is a tenant {name!r} already") from None
        return tenant

    def tenants(self) -> Sequence[Tenant]:
        with Session(self._engine) as session:
            rows = session.scalars(select(TenantRow).order_by(TenantRow.name))
            return [
                Tenant(r.id, r.name, r.weight, r.created_at_s, r.plan or UNLIMITED.name)
                for r in rows
            ]

    def put_plan(self, plan: Plan, actor: str = OPERATOR) -> None:
        """A new plan, or that one as it is from now on, for every tenant that has it.

        Raises:
            InvalidRequest: a malformed name, or a limit that makes no sense.
        """
        if not _NAME.match(plan.name) or plan.name == UNLIMITED.name:
            raise InvalidRequest("name", f"{plan.name!r} cannot be a plan's name")
        limits = {name: getattr(plan, name) for name in _LIMITS}
        for name, limit in {**limits, "weight": plan.weight}.items():
            if limit is not None and not 0 < limit < math.inf:
                raise InvalidRequest(name, f"{name} must be above 0, or left out for no limit")
        with Session(self._engine) as session, session.begin():
            row = session.get(PlanRow, plan.name) or PlanRow(name=plan.name)
            for name, value in {**limits, "weight": plan.weight}.items():
                setattr(row, name, value)
            session.add(row)
            given = {name: limit for name, limit in limits.items() if limit is not None}
            self._note(session, "", actor, "plan.put", plan.name, **given, weight=plan.weight)
        self._forget()

    def plans(self) -> Sequence[Plan]:
        with Session(self._engine) as session:
            rows = session.scalars(select(PlanRow).order_by(PlanRow.name))
            return [UNLIMITED, *map(_plan, rows)]

    def set_plan(self, tenant: str, plan: str, actor: str = OPERATOR) -> None:
        """Raises InvalidRequest when there is no such tenant or plan."""
        with Session(self._engine) as session, session.begin():
            row = self._tenant(session, tenant)
            row.plan = _plan_name(session, plan)
            self._note(session, row.id, actor, "tenant.plan", tenant, plan=plan)
        self._forget()

    def add_member(
        self, tenant: str, name: str, role: Role = "member", actor: str = OPERATOR
    ) -> Member:
        """Raises InvalidRequest when the name is malformed or taken."""
        _check_role(role)
        if not _MEMBER.match(name):
            raise InvalidRequest("name", "a member's name is 1 to 128 characters without spaces")
        with Session(self._engine) as session, session.begin():
            of = self._tenant(session, tenant)
            named = (MemberRow.tenant_id == of.id, MemberRow.name == name)
            row = session.scalars(select(MemberRow).where(*named)).first()
            if row is None:
                row = MemberRow(id=f"member_{ulid(self._now())}", tenant_id=of.id, name=name)
            elif row.removed_at_s is None:
                raise InvalidRequest("name", f"{name!r} is a member already")
            row.role, row.created_at_s, row.removed_at_s = role, self._now(), None
            session.add(row)
            self._note(session, of.id, actor, "member.add", name, role=role)
            return Member(row.id, name, role, row.created_at_s)

    def members(self, tenant: str) -> Sequence[Member]:
        with Session(self._engine) as session:
            of = self._tenant(session, tenant)
            rows = session.scalars(
                select(MemberRow)
                .where(MemberRow.tenant_id == of.id, MemberRow.removed_at_s.is_(None))
                .order_by(MemberRow.name)
            )
            return [Member(r.id, r.name, cast(Role, r.role), r.created_at_s) for r in rows]

    def remove_member(self, tenant: str, name: str, actor: str = OPERATOR) -> None:
        """Its keys stop working; what is private to it stays the owners'.

        Raises:
            InvalidRequest: no such member.
        """
        with Session(self._engine) as session, session.begin():
            of = self._tenant(session, tenant)
            row = _member(session, of.id, name)
            row.removed_at_s = self._now()
            mine = (ApiKeyRow.member_id == row.id, ApiKeyRow.revoked_at_s.is_(None))
            for key in session.scalars(select(ApiKeyRow).where(*mine)):
                key.revoked_at_s = self._now()
            self._note(session, of.id, actor, "member.remove", name)
        self._forget()

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
        _check_role(role)
        if expires_at_s is not None and expires_at_s <= self._now():
            raise InvalidRequest("expires_at", "the key would have expired already")
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
                    member_id=None if member is None else _member(session, row.id, member).id,
                )
            )
            self._note(session, row.id, actor, "key.create", key.id, role=role, member=member)
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
            self._note(session, row.tenant_id, actor, "key.rotate", key, replaced_by=fresh.id)
        self._forget()
        return fresh

    def _key(self, session: Session, key: str, tenant: str | None) -> ApiKeyRow:
        row = session.get(ApiKeyRow, key)
        if row is not None and tenant is not None:
            row = row if row.tenant_id == self._tenant(session, tenant).id else None
        if row is None:
            raise InvalidRequest("key", f"there is no live key {key!r}")
        return row

    def _forget(self) -> None:
        """What this process knows; others learn of a change within KEY_CACHE_S."""
        with self._lock:
            self._known.clear()

    def _note(
        self, session: Session, tenant_id: str, actor: str, act: str, subject: str, **details: Any
    ) -> None:
        note(session, self._now(), tenant_id, actor, act, subject, **details)

    def _is_live(self, row: ApiKeyRow) -> bool:
        expired = row.expires_at_s is not None and row.expires_at_s <= self._now()
        return row.revoked_at_s is None and not expired

    def keys(self, tenant: str) -> Sequence[ApiKey]:
        with Session(self._engine) as session:
            row = self._tenant(session, tenant)
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

    def revoke_key(self, key: str, tenant: str | None = None, actor: str = OPERATOR) -> None:
        """Raises InvalidRequest when there is no such key of the tenant."""
        with Session(self._engine) as session, session.begin():
            row = self._key(session, key, tenant)
            row.revoked_at_s = row.revoked_at_s or self._now()
            self._note(session, row.tenant_id, actor, "key.revoke", key)
        self._forget()

    def principal_of_tenant(self, name: str) -> Principal:
        """For doors that an operator has opened to a named tenant without a key."""
        with Session(self._engine) as session:
            return _principal(session, self._tenant(session, name))

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
                    return _principal(session, session.get_one(TenantRow, row.tenant_id), row)
        raise Unauthenticated("this API key is not valid (unknown, malformed, expired or revoked)")

    def _tenant(self, session: Session, name: str) -> TenantRow:
        row = session.scalars(select(TenantRow).where(TenantRow.name == name)).first()
        if row is None:
            raise InvalidRequest("tenant", f"there is no tenant {name!r}")
        return row


def _principal(session: Session, tenant: TenantRow, key: ApiKeyRow | None = None) -> Principal:
    plan = UNLIMITED
    if tenant.plan is not None:
        plan = _plan(session.get_one(PlanRow, tenant.plan))
    who = Principal(tenant.id, tenant.name, tenant.weight * plan.weight, plan=plan)
    if key is None:
        return who
    role = cast(Role, key.role)
    if key.member_id is not None:
        member = session.get_one(MemberRow, key.member_id)
        role = min(role, cast(Role, member.role), key=ROLES.index)
    return replace(who, key_id=key.id, role=role, member_id=key.member_id or "")


def _plan(row: PlanRow) -> Plan:
    return Plan(row.name, row.weight, **{name: getattr(row, name) for name in _LIMITS})


def _plan_name(session: Session, name: str | None) -> str | None:
    if name is None or name == UNLIMITED.name:
        return None
    if session.get(PlanRow, name) is None:
        raise InvalidRequest("plan", f"there is no plan {name!r}")
    return name


def _member(session: Session, tenant_id: str, name: str) -> MemberRow:
    named = (MemberRow.tenant_id == tenant_id, MemberRow.name == name)
    row = session.scalars(select(MemberRow).where(*named, MemberRow.removed_at_s.is_(None))).first()
    if row is None:
        raise InvalidRequest("member", f"there is no member {name!r}")
    return row


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise InvalidRequest("role", f"{role!r} is no role; {', '.join(ROLES)} are")
