"""Bodies of an organisation's self-administration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from assets.principal import KeyRole, Role
from serving.api.models.common import Timestamp, timestamp
from serving.tenants.audit import AuditEntry as Act
from serving.tenants.directory import Member
from serving.tenants.keyring import ApiKey
from serving.tenants.ledger import UNITS, Usage
from serving.tenants.rows import UsageKind


class OrganisationPlan(BaseModel):
    """Limits; null: none. ``weight``: the queue share."""

    name: str
    weight: float
    requests_per_min: int | None
    concurrent_pictures: int | None
    storage_bytes: int | None
    assets: int | None
    gpu_s_per_month: float | None


class OrganisationUse(BaseModel):
    """What is used now, and in this ``month`` (UTC)."""

    assets: int
    storage_bytes: int
    month: str
    gpu_s: float
    reserved_gpu_s: float


class Organisation(BaseModel):
    """The request's organisation, and its key."""

    name: str
    id: str
    role: Role
    key: str
    member: str | None
    #: Images have their parameters as metadata, where a request says nothing.
    image_metadata: bool
    plan: OrganisationPlan
    used: OrganisationUse


class OrganisationSettings(BaseModel):
    """``image_metadata``: images have their parameters as metadata."""

    image_metadata: bool


class UsageDetails(BaseModel):
    """What a row was charged for: an image's steps, size and sampler, a failed attempt's cause, the
    bytes stored."""

    model_config = ConfigDict(extra="allow")

    steps: int | None = None
    width: int | None = None
    height: int | None = None
    sampler: str | None = None
    work: float | None = None
    pool: str | None = None
    why: str | None = None
    bytes: int | None = None


class UsageRow(BaseModel):
    """A ledger row: an image, attempt or hour of storage."""

    id: int
    at: Timestamp
    kind: UsageKind
    reference: str
    quantity: float
    unit: str
    member: str | None
    key: str | None
    details: UsageDetails

    @classmethod
    def of(cls, row: Usage) -> UsageRow:
        return cls(
            id=row.id,
            at=timestamp(row.at_s),
            kind=row.kind,
            reference=row.reference,
            quantity=row.quantity,
            unit=UNITS[row.kind],
            member=row.member_id or None,
            key=row.key_id or None,
            details=UsageDetails.model_validate(row.details),
        )


class UsagePage(BaseModel):
    """A page of the ledger, with the period's ``totals``."""

    data: list[UsageRow]
    has_more: bool
    next: int | None
    totals: dict[str, float]


class AuditEntry(BaseModel):
    """An administrative action. ``details`` depend on ``act``."""

    id: int
    at: Timestamp
    at_s: float
    actor: str
    act: str
    subject: str
    details: dict[str, object]

    @classmethod
    def of(cls, entry: Act) -> AuditEntry:
        return cls(
            id=entry.id,
            at=timestamp(entry.at_s),
            at_s=entry.at_s,
            actor=entry.actor,
            act=entry.act,
            subject=entry.subject,
            details=dict(entry.details),
        )


class Acts(BaseModel):
    data: list[AuditEntry]


class MemberInfo(BaseModel):
    id: str
    name: str
    role: KeyRole
    created_at_s: float

    @classmethod
    def of(cls, member: Member) -> MemberInfo:
        return cls(
            id=member.id, name=member.name, role=member.role, created_at_s=member.created_at_s
        )


class Members(BaseModel):
    data: list[MemberInfo]


class RemovedMember(BaseModel):
    name: str
    removed: bool


class Key(BaseModel):
    """An API key without its secret."""

    id: str
    tenant: str
    label: str
    created_at_s: float
    revoked_at_s: float | None
    role: KeyRole
    expires_at_s: float | None
    member: str | None

    @classmethod
    def of(cls, key: ApiKey) -> Key:
        return cls(
            id=key.id,
            tenant=key.tenant,
            label=key.label,
            created_at_s=key.created_at_s,
            revoked_at_s=key.revoked_at_s,
            role=key.role,
            expires_at_s=key.expires_at_s,
            member=key.member,
        )


class Keys(BaseModel):
    data: list[Key]


class NewKey(BaseModel):
    """A new API key; ``key`` is shown only once."""

    id: str
    key: str


class RotatedKey(NewKey):
    replaces: str


class RevokedKey(BaseModel):
    id: str
    revoked: bool
