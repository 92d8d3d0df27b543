"""Self-administration of a tenant: plan, usage, audit log, members and API keys."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from pydantic import ConfigDict, Field

from assets.access import require_owner
from assets.library.records import Query as AssetQuery
from assets.principal import KeyRole, Principal
from serving.api.body import MAX_INTEGER
from serving.api.context import Ctx
from serving.api.dialects.octoai.assets import Short
from serving.api.keyed_route import Authenticated, KeyedRoute, SearchRoute, principal_of
from serving.api.models.organisation import (
    Acts,
    AuditEntry,
    Key,
    Keys,
    MemberInfo,
    Members,
    NewKey,
    Organisation,
    OrganisationPlan,
    OrganisationSettings,
    OrganisationUse,
    RemovedMember,
    RevokedKey,
    RotatedKey,
    UsagePage,
    UsageRow,
)
from serving.api.request_model import Instant, RequestModel
from serving.api.route_options import answers_text
from serving.tenants.ledger import Usage

router = APIRouter(prefix="/v1", tags=["organisation"], route_class=KeyedRoute)
search_router = APIRouter(prefix="/v1", tags=["organisation"], route_class=SearchRoute)
_ROWS_AT_ONCE = 200
_CSV_EXAMPLE = """id,at,kind,reference,quantity,unit,member,key,details
9001,2026-11-26T09:30:00+00:00,picture,req_5f1c9a7e3b2d4c6f/0,1.18,gpu_s,ada,key_4b1d8c,steps=30
"""


async def owner_of(principal: Annotated[Principal, Depends(principal_of)]) -> Principal:
    """Return the principal. Raises Forbidden unless an owner."""
    require_owner(principal)
    return principal


Owner = Annotated[Principal, Depends(owner_of)]
Since = Annotated[Instant | None, Query(description="Start of the period, inclusive.")]
Until = Annotated[Instant | None, Query(description="End of the period, exclusive.")]


class ChangeOrganisation(RequestModel):
    """Settings to change; omitted ones stay."""

    model_config = ConfigDict(extra="forbid")

    image_metadata: bool | None = None


class NewMember(RequestModel):
    model_config = ConfigDict(extra="forbid")

    name: Short
    role: KeyRole = "member"


class NewApiKey(RequestModel):
    """A new API key, of the organisation or ``member``."""

    model_config = ConfigDict(extra="forbid")

    label: Short = ""
    role: KeyRole = "owner"
    member: Short | None = None
    expires_at: Instant | None = None


class Rotate(RequestModel):
    """A key rotation; the old key expires in ``overlap_s``."""

    model_config = ConfigDict(extra="forbid")

    overlap_s: float = Field(default=24 * 3600.0, ge=0, le=366 * 24 * 3600.0, allow_inf_nan=False)


@router.get("/organisation")
async def get_organisation(context: Ctx, principal: Authenticated) -> Organisation:
    """Return the request's organisation and key, plan and usage."""

    def read_usage() -> OrganisationUse:
        budget = context.backends.meter.ledger.budget(principal.tenant_id)
        count = context.platform.library.list(
            Principal(principal.tenant_id, principal.tenant_name), AssetQuery(limit=1)
        )
        return OrganisationUse(
            assets=count.total,
            storage_bytes=context.backends.blobs.stored_bytes(principal.tenant_id),
            month=budget.month,
            gpu_s=budget.used_gpu_s,
            reserved_gpu_s=budget.reserved_gpu_s,
        )

    return Organisation(
        name=principal.tenant_name,
        id=principal.tenant_id,
        role=principal.role,
        key=principal.key_id,
        member=principal.member_id or None,
        image_metadata=principal.image_metadata,
        plan=OrganisationPlan(**asdict(principal.plan)),
        used=await asyncio.to_thread(read_usage),
    )


@router.patch("/organisation")
async def update_organisation(
    body: ChangeOrganisation, context: Ctx, principal: Owner
) -> OrganisationSettings:
    """Change settings of the organisation."""
    wanted = principal.image_metadata if body.image_metadata is None else body.image_metadata
    if body.image_metadata is not None:
        directory = context.backends.directory
        set_metadata = partial(
            directory.set_image_metadata,
            principal.tenant_name,
            wanted=wanted,
            actor=principal.key_id,
        )
        await asyncio.to_thread(set_metadata)
    return OrganisationSettings(image_metadata=wanted)


@search_router.get("/usage")
async def list_usage(
    context: Ctx,
    principal: Authenticated,
    since: Since = None,
    until: Until = None,
    after: Annotated[int, Query(ge=0, le=MAX_INTEGER)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> UsagePage:
    """List ledger rows and sums; ``after`` is the last page's ``next``."""
    since_s, until_s = _span(since, until)

    def read() -> tuple[Sequence[Usage], Mapping[str, float]]:
        rows = context.backends.meter.ledger.usage(
            principal.tenant_id, since_s, until_s, after, limit + 1
        )
        return rows, context.backends.meter.ledger.totals(principal.tenant_id, since_s, until_s)

    rows, totals = await asyncio.to_thread(read)
    has_more = len(rows) > limit
    return UsagePage(
        data=[UsageRow.of(row) for row in rows[:limit]],
        has_more=has_more,
        next=rows[limit - 1].id if has_more else None,
        totals=dict(totals),
    )


@router.get("/usage.csv", **answers_text("text/csv", _CSV_EXAMPLE))
async def export_usage(
    context: Ctx, principal: Authenticated, since: Since = None, until: Until = None
) -> StreamingResponse:
    """Export the period's rows as CSV."""
    since_s, until_s = _span(since, until)
    rows = context.backends.meter.ledger.iter_usage(principal.tenant_id, since_s, until_s)
    headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
    return StreamingResponse(_csv(rows), media_type="text/csv; charset=utf-8", headers=headers)


_COLUMNS = ("id", "at", "kind", "reference", "quantity", "unit", "member", "key")


async def _csv(rows: Iterator[Usage]) -> AsyncIterator[str]:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_COLUMNS, "details"])
    writer.writeheader()
    while True:
        batch = await asyncio.to_thread(lambda: list(islice(rows, _ROWS_AT_ONCE)))
        for row in batch:
            details = " ".join(f"{name}={value}" for name, value in row.details.items())
            writer.writerow({**UsageRow.of(row).model_dump(), "details": details})
        yield text.getvalue()
        text.seek(0)
        text.truncate()
        if len(batch) < _ROWS_AT_ONCE:
            return


def _span(since: Instant | None, until: Instant | None) -> tuple[float, float | None]:
    return (since.timestamp() if since else 0.0, until.timestamp() if until else None)


@router.get("/audit")
async def list_audit(
    context: Ctx,
    principal: Owner,
    before: Annotated[int | None, Query(ge=1, le=MAX_INTEGER)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Acts:
    """List the audit log, newest first; ``before`` is the last page's last id."""
    acts = await asyncio.to_thread(context.backends.audit.acts, principal.tenant_id, limit, before)
    return Acts(data=[AuditEntry.of(act) for act in acts])


@router.get("/members")
async def list_members(context: Ctx, principal: Owner) -> Members:
    rows = await asyncio.to_thread(context.backends.directory.members, principal.tenant_name)
    return Members(data=[MemberInfo.of(member) for member in rows])


@router.post("/members")
async def add_member(body: NewMember, context: Ctx, principal: Owner) -> MemberInfo:
    member = await asyncio.to_thread(
        context.backends.directory.add_member,
        principal.tenant_name,
        body.name,
        body.role,
        principal.key_id,
    )
    return MemberInfo.of(member)


@router.delete("/members/{name}")
async def remove_member(name: str, context: Ctx, principal: Owner) -> RemovedMember:
    """Remove a member and revoke its keys; owners keep private assets."""
    await asyncio.to_thread(
        context.backends.directory.remove_member, principal.tenant_name, name, principal.key_id
    )
    return RemovedMember(name=name, removed=True)


@router.get("/keys")
async def list_keys(context: Ctx, principal: Owner) -> Keys:
    rows = await asyncio.to_thread(context.backends.directory.keyring.keys, principal.tenant_name)
    return Keys(data=[Key.of(key) for key in rows])


@router.post("/keys")
async def create_key(body: NewApiKey, context: Ctx, principal: Owner) -> NewKey:
    """Create an API key, shown only once."""
    until_s = body.expires_at.timestamp() if body.expires_at else None
    key = await asyncio.to_thread(
        context.backends.directory.keyring.add_key,
        principal.tenant_name,
        body.label,
        body.role,
        until_s,
        body.member,
        principal.key_id,
    )
    return NewKey(id=key.id, key=key.text)


@router.post("/keys/{key_id}/rotate")
async def rotate_key(
    key_id: str, context: Ctx, principal: Owner, body: Rotate | None = None
) -> RotatedKey:
    """Replace a key, which expires after the overlap."""
    overlap_s = (body or Rotate()).overlap_s
    key = await asyncio.to_thread(
        context.backends.directory.keyring.rotate_key,
        key_id,
        overlap_s,
        principal.tenant_name,
        principal.key_id,
    )
    return RotatedKey(id=key.id, key=key.text, replaces=key_id)


@router.delete("/keys/{key_id}")
async def revoke_key(key_id: str, context: Ctx, principal: Owner) -> RevokedKey:
    """Revoke a key, within seconds everywhere."""
    await asyncio.to_thread(
        context.backends.directory.keyring.revoke_key,
        key_id,
        principal.tenant_name,
        principal.key_id,
    )
    return RevokedKey(id=key_id, revoked=True)
