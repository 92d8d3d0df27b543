"""Lookups of tenants and members by name."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from assets.plan import Plan
from assets.principal import KEY_ROLES
from serving.errors import InvalidRequest, NotFound
from serving.tenants.rows import MemberRow, PlanRow, TenantRow

LIMITS = (
    "requests_per_min", "concurrent_pictures", "storage_bytes", "assets", "gpu_s_per_month",
)  # fmt: skip


def tenant_named(session: Session, name: str) -> TenantRow:
    """Return a tenant's row. Raises InvalidRequest if missing."""
    row = session.scalars(select(TenantRow).where(TenantRow.name == name)).first()
    if row is None:
        raise InvalidRequest("tenant", f"there is no tenant {name!r}")
    return row


def member_named(session: Session, tenant_id: str, name: str) -> MemberRow:
    """Return a current member's row. Raises NotFound."""
    named = (MemberRow.tenant_id == tenant_id, MemberRow.name == name)
    row = session.scalars(select(MemberRow).where(*named, MemberRow.removed_at_s.is_(None))).first()
    if row is None:
        raise NotFound("member", name)
    return row


def plan_of(row: PlanRow) -> Plan:
    return Plan(row.name, row.weight, **{name: getattr(row, name) for name in LIMITS})


def check_role(role: str) -> None:
    """Raise InvalidRequest unless ``role`` is known."""
    if role not in KEY_ROLES:
        raise InvalidRequest("role", f"unknown role {role!r}; use one of {', '.join(KEY_ROLES)}")
