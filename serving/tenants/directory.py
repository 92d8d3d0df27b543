"""The directory of tenants, plans and members."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from assets.asset import COMMONS
from assets.ids import ulid
from assets.plan import UNLIMITED, Plan
from assets.principal import KeyRole
from assets.text import is_storable
from serving.errors import InvalidRequest
from serving.tenants.audit import OPERATOR, note
from serving.tenants.keyring import Keyring
from serving.tenants.lookups import LIMITS, check_role, member_named, plan_of, tenant_named
from serving.tenants.rows import ApiKeyRow, MemberRow, PlanRow, TenantRow

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_MEMBER = re.compile(r"[^\s/]{1,128}\Z")
_RESERVED = (COMMONS, "octoai")


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organisation; the plan multiplies its ``weight`` in the queue."""

    id: str
    name: str
    weight: float
    created_at_s: float
    plan: str = UNLIMITED.name


@dataclass(frozen=True, slots=True)
class Member:
    """A tenant's member; ``role`` limits its keys."""

    id: str
    name: str
    role: KeyRole
    created_at_s: float


class Directory:
    """Tenants, plans and members; ``actor`` is OPERATOR or a key's id."""

    def __init__(
        self,
        engine: Engine,
        keyring: Keyring | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._now = now
        self.keyring = keyring or Keyring(engine, now)

    def ping(self) -> None:
        """Query the database. Raises OperationalError."""
        with Session(self._engine) as session:
            session.execute(select(1))

    def add_tenant(
        self, name: str, weight: float = 1.0, plan: str | None = None, actor: str = OPERATOR
    ) -> Tenant:
        """Add a tenant.

        Raises:
            InvalidRequest: bad, reserved or taken name; bad weight or plan.
        """
        if not _NAME.match(name) or name in _RESERVED:
            raise InvalidRequest(
                "name",
                f"{name!r} is reserved or malformed; use up to 63 lower-case letters, digits, '-'",
            )
        if not 0.0 < weight <= 1000.0:
            raise InvalidRequest("weight", f"the weight {weight} must be above 0 and at most 1000")
        row = TenantRow(id=str(uuid.uuid4()), name=name, weight=weight, created_at_s=self._now())
        tenant = Tenant(row.id, row.name, row.weight, row.created_at_s, plan or UNLIMITED.name)
        try:
            with Session(self._engine) as session, session.begin():
                row.plan = _plan_name(session, plan)
                session.add(row)
                self._note(session, tenant.id, actor, "tenant.create", name, plan=tenant.plan)
        except IntegrityError:
            raise InvalidRequest("name", f"tenant {name!r} already exists") from None
        return tenant

    def tenants(self) -> Sequence[Tenant]:
        with Session(self._engine) as session:
            rows = session.scalars(select(TenantRow).order_by(TenantRow.name))
            return [
                Tenant(r.id, r.name, r.weight, r.created_at_s, r.plan or UNLIMITED.name)
                for r in rows
            ]

    def storage_limit(self, tenant_id: str) -> int | None:
        """Return the plan's storage limit in bytes, if any."""
        query = select(PlanRow.storage_bytes).join(TenantRow, TenantRow.plan == PlanRow.name)
        with Session(self._engine) as session:
            return session.scalar(query.where(TenantRow.id == tenant_id))

    def put_plan(self, plan: Plan, actor: str = OPERATOR) -> None:
        """Add or replace a plan, for all its tenants.

        Raises:
            InvalidRequest: bad name, or a number is not positive.
        """
        if not _NAME.match(plan.name) or plan.name == UNLIMITED.name:
            raise InvalidRequest("name", f"{plan.name!r} is not a valid plan name")
        limits = {name: getattr(plan, name) for name in LIMITS}
        for name, limit in {**limits, "weight": plan.weight}.items():
            if limit is not None and not 0 < limit < math.inf:
                raise InvalidRequest(name, f"{name} must be above 0; leave it out for no limit")
        with Session(self._engine) as session, session.begin():
            row = session.get(PlanRow, plan.name) or PlanRow(name=plan.name)
            for name, value in {**limits, "weight": plan.weight}.items():
                setattr(row, name, value)
            session.add(row)
            set_limits = {name: limit for name, limit in limits.items() if limit is not None}
            self._note(session, "", actor, "plan.put", plan.name, **set_limits, weight=plan.weight)
        self.keyring.forget()

    def plans(self) -> Sequence[Plan]:
        with Session(self._engine) as session:
            rows = session.scalars(select(PlanRow).order_by(PlanRow.name))
            return [UNLIMITED, *map(plan_of, rows)]

    def set_plan(self, tenant: str, plan: str, actor: str = OPERATOR) -> None:
        """Assign a plan. Raises InvalidRequest if either is missing."""
        with Session(self._engine) as session, session.begin():
            row = tenant_named(session, tenant)
            row.plan = _plan_name(session, plan)
            self._note(session, row.id, actor, "tenant.plan", tenant, plan=plan)
        self.keyring.forget()

    def set_gpu(self, tenant: str, gpu: str | None, actor: str = OPERATOR) -> None:
        """Set the default GPU pool; None is the platform's first.

        Raises:
            InvalidRequest: no such tenant.
        """
        with Session(self._engine) as session, session.begin():
            row = tenant_named(session, tenant)
            row.gpu = gpu
            self._note(session, row.id, actor, "tenant.gpu", tenant, gpu=gpu)
        self.keyring.forget()

    def set_image_metadata(self, tenant: str, *, wanted: bool, actor: str = OPERATOR) -> None:
        """Set whether images have their parameters as metadata, where a request says nothing.

        Raises:
            InvalidRequest: no such tenant.
        """
        with Session(self._engine) as session, session.begin():
            row = tenant_named(session, tenant)
            row.image_metadata = wanted
            self._note(session, row.id, actor, "tenant.image_metadata", tenant, wanted=wanted)
        self.keyring.forget()

    def add_member(
        self, tenant: str, name: str, role: KeyRole = "member", actor: str = OPERATOR
    ) -> Member:
        """Add a member, or restore a removed one with its id.

        Raises:
            InvalidRequest: bad or taken name; unknown role or tenant.
        """
        check_role(role)
        if not _MEMBER.match(name) or not is_storable(name):
            raise InvalidRequest(
                "name", "a member name has 1 to 128 characters, without spaces or '/'"
            )
        with Session(self._engine) as session, session.begin():
            tenant_row = tenant_named(session, tenant)
            named = (MemberRow.tenant_id == tenant_row.id, MemberRow.name == name)
            row = session.scalars(select(MemberRow).where(*named)).first()
            if row is None:
                row = MemberRow(
                    id=f"member_{ulid(self._now())}", tenant_id=tenant_row.id, name=name
                )
            elif row.removed_at_s is None:
                raise InvalidRequest("name", f"{name!r} is already a member")
            row.role, row.created_at_s, row.removed_at_s = role, self._now(), None
            session.add(row)
            self._note(session, tenant_row.id, actor, "member.add", name, role=role)
            return Member(row.id, name, role, row.created_at_s)

    def members(self, tenant: str) -> Sequence[Member]:
        with Session(self._engine) as session:
            tenant_row = tenant_named(session, tenant)
            rows = session.scalars(
                select(MemberRow)
                .where(MemberRow.tenant_id == tenant_row.id, MemberRow.removed_at_s.is_(None))
                .order_by(MemberRow.name)
            )
            return [Member(r.id, r.name, r.role, r.created_at_s) for r in rows]

    def remove_member(self, tenant: str, name: str, actor: str = OPERATOR) -> None:
        """Remove a member and revoke its keys; owners keep its private assets.

        Raises:
            NotFound: no such member.
        """
        with Session(self._engine) as session, session.begin():
            tenant_row = tenant_named(session, tenant)
            row = member_named(session, tenant_row.id, name)
            row.removed_at_s = self._now()
            mine = (ApiKeyRow.member_id == row.id, ApiKeyRow.revoked_at_s.is_(None))
            for key in session.scalars(select(ApiKeyRow).where(*mine)):
                key.revoked_at_s = self._now()
            self._note(session, tenant_row.id, actor, "member.remove", name)
        self.keyring.forget()

    def _note(
        self, session: Session, tenant_id: str, actor: str, act: str, subject: str, **details: Any
    ) -> None:
        note(session, self._now(), tenant_id, actor, act, subject, **details)


def _plan_name(session: Session, name: str | None) -> str | None:
    if name is None or name == UNLIMITED.name:
        return None
    if session.get(PlanRow, name) is None:
        raise InvalidRequest("plan", f"there is no plan {name!r}")
    return name
