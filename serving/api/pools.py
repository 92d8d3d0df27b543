"""The routes of the GPU pools: limits, queue, replicas and start-up progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter

from assets.errors import AssetNotFound
from serving.api import response_models as response_models
from serving.api.context import Context, Ctx
from serving.api.keyed_route import OpenRoute
from serving.api.openapi import answers_with

router = APIRouter(prefix="/v1/pools", tags=["pools"], route_class=OpenRoute)


@router.get("", **answers_with(response_models.Pools))
async def list_pools(context: Ctx) -> dict[str, Any]:
    """Return all pools, the default first."""
    return {"data": await _pools(context)}


@router.get("/{name}", **answers_with(response_models.Pool))
async def get_pool(name: str, context: Ctx) -> Any:
    for pool in await _pools(context):
        if pool["name"] == name:
            return pool
    raise AssetNotFound(name)


async def _pools(context: Context) -> Sequence[Mapping[str, Any]]:
    return await context.recent.get("pools", context.platform.pools)
