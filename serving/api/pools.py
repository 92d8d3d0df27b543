"""The pools of GPUs: how large they may be, what waits, what starts and how far it is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from assets.errors import AssetNotFound
from serving.api.context import Ctx

router = APIRouter(prefix="/v1/pools", tags=["pools"])


@router.get("")
async def list_pools(context: Ctx) -> dict[str, Any]:
    """Every pool, the first of which is for whoever does not say."""
    return {"data": await context.platform.pools()}


@router.get("/{name}")
async def get_pool(name: str, context: Ctx) -> Any:
    for pool in await context.platform.pools():
        if pool["name"] == name:
            return pool
    raise AssetNotFound(name)
