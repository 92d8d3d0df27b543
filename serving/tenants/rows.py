"""The tenants' tables: plans, members, keys, rates, usage and audit log."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from assets.principal import KeyRole
from assets.sql.base import Base

#: SQLite auto-increments only INTEGER columns.
_COUNTER = BigInteger().with_variant(Integer(), "sqlite")

UsageKind = Literal["picture", "attempt", "storage"]


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
    #: Multiplied by the plan's.
    weight: Mapped[float]
    created_at_s: Mapped[float]
    #: None has no limits.
    plan: Mapped[str | None] = mapped_column(ForeignKey("plans.name"))
    #: None is the platform's first.
    gpu: Mapped[str | None]
    #: None is true.
    image_metadata: Mapped[bool | None]


class MemberRow(Base):
    __tablename__ = "members"
    __table_args__ = (Index("members_name", "tenant_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str]
    role: Mapped[KeyRole] = mapped_column(String)
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
    role: Mapped[KeyRole] = mapped_column(String)
    expires_at_s: Mapped[float | None]
    #: None for the organisation's keys.
    member_id: Mapped[str | None] = mapped_column(ForeignKey("members.id"))


class RateRow(Base):
    """The time at which an unused quota is full again."""

    __tablename__ = "rates"

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    whole_at_s: Mapped[float]


class BudgetRow(Base):
    """Monthly engine seconds: sums of ledger and reservation rows."""

    __tablename__ = "budgets"

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    month: Mapped[str] = mapped_column(primary_key=True)
    used_gpu_s: Mapped[float]
    reserved_gpu_s: Mapped[float]


class ReservationRow(Base):
    """A running request's estimated cost."""

    __tablename__ = "reservations"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    month: Mapped[str]
    gpu_s: Mapped[float]
    #: None: the job releases it.
    expires_at_s: Mapped[float | None] = mapped_column(index=True)


class LedgerRow(Base):
    """The usage ledger, append-only by database triggers."""

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
    kind: Mapped[UsageKind] = mapped_column(String)
    #: Unique per ``kind``: charged once.
    reference: Mapped[str]
    quantity: Mapped[float]
    details: Mapped[dict[str, object]] = mapped_column(JSON)


class AuditRow(Base):
    """The audit log, append-only by database triggers."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_tenant", "tenant_id", "id"),)

    id: Mapped[int] = mapped_column(_COUNTER, primary_key=True)
    at_s: Mapped[float]
    tenant_id: Mapped[str]
    actor: Mapped[str]
    act: Mapped[str]
    subject: Mapped[str]
    details: Mapped[dict[str, object]] = mapped_column(JSON)
