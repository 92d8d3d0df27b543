"""The routes of the GPU pools: limits, queue, replicas and start-up progress."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter

from assets.errors import AssetNotFound
from serving.api.context import Context, Ctx
from serving.api.keyed_route import OpenRoute
from serving.api.models.pools import Pool, Pools
from serving.generation.status import PoolStatus

router = APIRouter(prefix="/v1/pools", tags=["pools"], route_class=OpenRoute)


@router.get("")
async def list_pools(context: Ctx) -> Pools:
    """Return all pools, the default first."""
    return Pools(data=[Pool.of(pool) for pool in await _pools(context)])


@router.get("/{name}")
async def get_pool(name: str, context: Ctx) -> Pool:
    for pool in await _pools(context):
        if pool.pool.name == name:
            return Pool.of(pool)
    raise AssetNotFound(name)


async def _pools(context: Context) -> Sequence[PoolStatus]:
    return await context.recent.get("pools", context.monitor.pools)
