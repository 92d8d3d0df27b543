"""A tenant looks after itself: what it may use and has used, its members, its keys."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, ConfigDict, Field

from assets.access import require_owner
from assets.library.records import Query as AssetQuery
from assets.principal import KeyRole, Principal
from serving.api import answers
from serving.api.body import MAX_INTEGER
from serving.api.context import Ctx
from serving.api.dialects.octoai.assets import Short, timestamp
from serving.api.keyed_route import KeyedRoute, SearchRoute, Who, principal_of
from serving.api.openapi import answers_bytes, answers_with
from serving.api.request_model import RequestModel
from serving.tenants.meter import UNITS, Usage

router = APIRouter(prefix="/v1", tags=["organisation"], route_class=KeyedRoute)
search_router = APIRouter(prefix="/v1", tags=["organisation"], route_class=SearchRoute)
_ROWS_AT_ONCE = 200


async def owner_of(who: Annotated[Principal, Depends(principal_of)]) -> Principal:
    require_owner(who)
    return who


Owner = Annotated[Principal, Depends(owner_of)]
Since = Annotated[AwareDatetime | None, Query(description="From this moment on.")]
Until = Annotated[AwareDatetime | None, Query(description="Before this moment.")]


class NewMember(RequestModel):
    model_config = ConfigDict(extra="forbid")

    name: Short
    role: KeyRole = "member"


class NewApiKey(RequestModel):
    model_config = ConfigDict(extra="forbid")

    label: Short = ""
    role: KeyRole = "owner"
    member: Short | None = None
    expires_at: AwareDatetime | None = None


class Rotate(RequestModel):
    model_config = ConfigDict(extra="forbid")

    overlap_s: float = Field(24 * 3600.0, ge=0, le=366 * 24 * 3600.0, allow_inf_nan=False)


@router.get("/organisation", **answers_with(answers.Organisation))
async def organisation(context: Ctx, who: Who) -> dict[str, Any]:
    """Who asks, the plan, and how much of it is used."""

    def held() -> dict[str, Any]:
        budget = context.backends.meter.budget(who.tenant_id)
        count = context.platform.library.list(
            Principal(who.tenant_id, who.tenant_name), AssetQuery(limit=1)
        )
        return {
            "assets": count.total,
            "storage_bytes": context.platform.library.stored_bytes(who),
            "month": budget.month,
            "gpu_s": budget.used_gpu_s,
            "reserved_gpu_s": budget.reserved_gpu_s,
        }

    return {
        "name": who.tenant_name,
        "id": who.tenant_id,
        "role": who.role,
        "key": who.key_id,
        "member": who.member_id or None,
        "plan": asdict(who.plan),
        "used": await asyncio.to_thread(held),
    }


@search_router.get("/usage", **answers_with(answers.UsagePage))
async def usage(
    context: Ctx,
    who: Who,
    since: Since = None,
    until: Until = None,
    after: Annotated[int, Query(ge=0, le=MAX_INTEGER)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Rows of the ledger, one a picture and one a tenant and hour of storage, and their sums.
    ``after``, the last page's ``next``, goes on where that page ended."""
    since_s, until_s = _span(since, until)

    def read() -> tuple[Any, Any]:
        rows = context.backends.meter.usage(who.tenant_id, since_s, until_s, after, limit + 1)
        return rows, context.backends.meter.totals(who.tenant_id, since_s, until_s)

    rows, totals = await asyncio.to_thread(read)
    more = len(rows) > limit
    return {
        "data": [_usage(row) for row in rows[:limit]],
        "has_more": more,
        "next": rows[limit - 1].id if more else None,
        "totals": totals,
    }


@router.get("/usage.csv", **answers_bytes("text/csv"))
async def usage_csv(
    context: Ctx, who: Who, since: Since = None, until: Until = None
) -> StreamingResponse:
    """All rows of the span, however many."""
    since_s, until_s = _span(since, until)
    rows = context.backends.meter.every_usage(who.tenant_id, since_s, until_s)
    headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
    return StreamingResponse(_csv(rows), media_type="text/csv; charset=utf-8", headers=headers)


_COLUMNS = ("id", "at", "kind", "reference", "quantity", "unit", "member", "key")


async def _csv(rows: Iterator[Usage]) -> AsyncIterator[str]:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_COLUMNS, "details"])
    writer.writeheader()
    while True:
        some = await asyncio.to_thread(lambda: list(islice(rows, _ROWS_AT_ONCE)))
        for row in some:
            described = _usage(row)
            details = " ".join(f"{name}={value}" for name, value in described["details"].items())
            writer.writerow({**described, "details": details})
        yield text.getvalue()
        text.seek(0)
        text.truncate()
        if len(some) < _ROWS_AT_ONCE:
            return


def _usage(row: Usage) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": timestamp(row.at_s),
        "kind": row.kind,
        "reference": row.reference,
        "quantity": row.quantity,
        "unit": UNITS[row.kind],
        "member": row.member_id or None,
        "key": row.key_id or None,
        "details": dict(row.details),
    }


def _span(since: AwareDatetime | None, until: AwareDatetime | None) -> tuple[float, float | None]:
    return (since.timestamp() if since else 0.0, until.timestamp() if until else None)


@router.get("/audit", **answers_with(answers.Acts))
async def audit(
    context: Ctx,
    who: Owner,
    before: Annotated[int | None, Query(ge=1, le=MAX_INTEGER)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Administrative acts, newest first; ``before`` is the last id of the page before."""
    acts = await asyncio.to_thread(context.backends.audit.acts, who.tenant_id, limit, before)
    return {"data": [{**asdict(act), "at": timestamp(act.at_s)} for act in acts]}


@router.get("/members", **answers_with(answers.Members))
async def members(context: Ctx, who: Owner) -> dict[str, Any]:
    found = await asyncio.to_thread(context.backends.directory.members, who.tenant_name)
    return {"data": [asdict(member) for member in found]}


@router.post("/members", **answers_with(answers.MemberInfo))
async def add_member(body: NewMember, context: Ctx, who: Owner) -> dict[str, Any]:
    member = await asyncio.to_thread(
        context.backends.directory.add_member, who.tenant_name, body.name, body.role, who.key_id
    )
    return asdict(member)


@router.delete("/members/{name}", **answers_with(answers.RemovedMember))
async def remove_member(name: str, context: Ctx, who: Owner) -> dict[str, Any]:
    """Its keys are revoked; what is private to it stays the owners'."""
    await asyncio.to_thread(
        context.backends.directory.remove_member, who.tenant_name, name, who.key_id
    )
    return {"name": name, "removed": True}


@router.get("/keys", **answers_with(answers.Keys))
async def keys(context: Ctx, who: Owner) -> dict[str, Any]:
    found = await asyncio.to_thread(context.backends.directory.keyring.keys, who.tenant_name)
    return {"data": [asdict(key) for key in found]}


@router.post("/keys", **answers_with(answers.NewKey))
async def add_key(body: NewApiKey, context: Ctx, who: Owner) -> dict[str, Any]:
    """The answer is the only time the key is shown."""
    until_s = body.expires_at.timestamp() if body.expires_at else None
    key = await asyncio.to_thread(
        context.backends.directory.keyring.add_key, who.tenant_name, body.label, body.role, until_s,
        body.member, who.key_id,
    )  # fmt: skip
    return {"id": key.id, "key": key.text}


@router.post("/keys/{key_id}/rotate", **answers_with(answers.RotatedKey))
async def rotate_key(key_id: str, context: Ctx, who: Owner, body: Rotate | None = None) -> Any:
    """A new key like that one, which expires after the overlap."""
    overlap_s = (body or Rotate()).overlap_s  # type: ignore[call-arg]
    key = await asyncio.to_thread(
        context.backends.directory.keyring.rotate_key,
        key_id,
        overlap_s,
        who.tenant_name,
        who.key_id,
    )
    return {"id": key.id, "key": key.text, "replaces": key_id}


@router.delete("/keys/{key_id}", **answers_with(answers.RevokedKey))
async def revoke_key(key_id: str, context: Ctx, who: Owner) -> dict[str, Any]:
    """Every gateway refuses it within seconds."""
    await asyncio.to_thread(
        context.backends.directory.keyring.revoke_key, key_id, who.tenant_name, who.key_id
    )
    return {"id": key_id, "revoked": True}
