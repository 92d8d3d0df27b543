"""The database tables of tenants: plans, members, keys, rates, usage and audit log."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from assets.sql.base import Base

#: SQLite auto-increments only columns of type INTEGER.
_COUNTER = BigInteger().with_variant(Integer(), "sqlite")


class PlanRow(Base):
    __tablename__ = "plans"

    name: Mapped[str] = mapped_column(primary_key=True)
    weight: Mapped[float]
    requests_per_min: Mapped[int | None]
    concurrent_pictures: Mapped[int | None]
    storage_bytes: Mapped[int | None] = mapped_column(BigInteger)
    assets: Mapped[int | None]
    gpu_s_per_month: Mapped[float | None]


class TenantRow(Base):
    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    #: Its own share in the queue, multiplied by its plan's.
    weight: Mapped[float]
    created_at_s: Mapped[float]
    #: None for the plan without limits.
    plan: Mapped[str | None] = mapped_column(ForeignKey("plans.name"))
    #: The default GPU pool; None for the platform's first.
    gpu: Mapped[str | None]


class MemberRow(Base):
    __tablename__ = "members"
    __table_args__ = (Index("members_name", "tenant_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str]
    role: Mapped[str]
    created_at_s: Mapped[float]
    removed_at_s: Mapped[float | None]


class ApiKeyRow(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    digest: Mapped[str]
    label: Mapped[str]
    created_at_s: Mapped[float]
    revoked_at_s: Mapped[float | None]
    role: Mapped[str]
    expires_at_s: Mapped[float | None]
    #: None for a key of the organisation, not of a member.
    member_id: Mapped[str | None] = mapped_column(ForeignKey("members.id"))


class RateRow(Base):
    """The time at which a quota is full again if no more requests come."""

    __tablename__ = "rates"

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    whole_at_s: Mapped[float]


class BudgetRow(Base):
    """The engine seconds of a tenant in a month.

    ``used_gpu_s`` is the sum of its ledger rows, ``reserved_gpu_s`` that of its reservations.
    """

    __tablename__ = "budgets"

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    month: Mapped[str] = mapped_column(primary_key=True)
    used_gpu_s: Mapped[float]
    reserved_gpu_s: Mapped[float]


class ReservationRow(Base):
    """The estimated cost of a running request. Ends with the request, or expires."""

    __tablename__ = "reservations"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    month: Mapped[str]
    gpu_s: Mapped[float]
    #: None for a job: the job releases it.
    expires_at_s: Mapped[float | None] = mapped_column(index=True)


class LedgerRow(Base):
    """The usage ledger; append-only, enforced by database triggers."""

    __tablename__ = "ledger"
    __table_args__ = (
        Index("ledger_once", "kind", "reference", unique=True),
        Index("ledger_tenant", "tenant_id", "id"),
    )

    id: Mapped[int] = mapped_column(_COUNTER, primary_key=True)
    at_s: Mapped[float]
    tenant_id: Mapped[str]
    member_id: Mapped[str]
    key_id: Mapped[str]
    kind: Mapped[str]
    #: The charged object; unique per ``kind``, so nothing is charged twice.
    reference: Mapped[str]
    quantity: Mapped[float]
    details: Mapped[dict[str, Any]] = mapped_column(JSON)


class AuditRow(Base):
    """The audit log; append-only, enforced by database triggers."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_tenant", "tenant_id", "id"),)

    id: Mapped[int] = mapped_column(_COUNTER, primary_key=True)
    at_s: Mapped[float]
    tenant_id: Mapped[str]
    actor: Mapped[str]
    act: Mapped[str]
    subject: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
