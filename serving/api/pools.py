"""The routes of the GPU pools: limits, queue, replicas and start-up progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from msgspec import structs

from assets.errors import AssetNotFound
from serving.api import response_models as response_models
from serving.api.context import Context, Ctx
from serving.api.keyed_route import OpenRoute
from serving.api.openapi import answers_with
from serving.generation.status import PoolEvent, PoolStatus, ReplicaStart

router = APIRouter(prefix="/v1/pools", tags=["pools"], route_class=OpenRoute)


@router.get("", **answers_with(response_models.Pools))
async def list_pools(context: Ctx) -> dict[str, object]:
    """Return all pools, the default first."""
    return {"data": [pool_body(pool) for pool in await _pools(context)]}


@router.get("/{name}", **answers_with(response_models.Pool))
async def get_pool(name: str, context: Ctx) -> Any:
    for pool in await _pools(context):
        if pool.pool.name == name:
            return pool_body(pool)
    raise AssetNotFound(name)


async def _pools(context: Context) -> Sequence[PoolStatus]:
    return await context.recent.get("pools", context.platform.pools)


def pool_body(status: PoolStatus) -> dict[str, object]:
    state = status.state
    if state is None:
        return asdict(status.pool)
    return {
        **asdict(status.pool),
        **structs.asdict(state),
        "replicas": [_replica(replica) for replica in state.replicas],
        "starting": None if state.starting is None else structs.asdict(state.starting),
        "events": [_event(event) for event in state.events],
    }


def _replica(replica: ReplicaStart) -> dict[str, object]:
    fields = structs.asdict(replica)
    return {"id": fields.pop("id"), "state": "up" if fields.pop("is_up") else "starting", **fields}


def _event(event: PoolEvent) -> dict[str, object]:
    """``details`` has what belongs to the kind of event."""
    named = {"waiting": event.waiting, "seconds": event.start_s, "reason": event.reason}
    details = {name: value for name, value in named.items() if value is not None}
    return {
        "at_s": event.at_s, "what": event.kind, "replica": event.replica, "details": details
    }  # fmt: skip
