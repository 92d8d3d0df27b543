"""The Asset Library: /v1/assets."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query

from assets.asset import ASSET_KINDS, Asset
from assets.asset import SERVED_ENGINE as ENGINE
from assets.keys import blob_key, upload_key
from assets.library import Change, NewAsset
from assets.principal import Principal
from assets.records import Query as AssetQuery
from serving.api.context import Context, Ctx, Who
from serving.api.wire_assets import (
    ChangeAsset,
    CompleteUpload,
    CreateAsset,
    asset_body,
    stored_data,
    timestamp,
)
from serving.errors import InvalidRequest

router = APIRouter(prefix="/v1/assets", tags=["assets"])


def _transfer(context: Context, asset: Asset, who: Principal) -> dict[str, Any]:
    """Always a presigned URL, whatever was asked for: every client follows what it gets.

    Only the owner of an asset that still waits for its bytes gets a URL to put them.
    """
    key = upload_key(asset.id)
    stored = blob_key(next(iter(asset.parts.values()))) if len(asset.parts) == 1 else key
    may_put = asset.tenant_id == who.tenant_id and asset.status == "ready_to_upload"
    return {
        "type": "presigned-url",
        "put_url": context.signed_url("PUT", key) if may_put else "",
        "get_url": context.signed_url("GET", stored),
    }


def _preview_url(context: Context, asset: Asset) -> str | None:
    return context.signed_url("GET", asset.preview) if asset.preview else None


@router.post("")
async def create(body: CreateAsset, context: Ctx, who: Who) -> dict[str, Any]:
    for name, value in (("url", body.url), ("hf_repo", body.hf_repo)):
        if value:
            raise InvalidRequest(name, f"import by {name} is not served here yet; upload the file")
    new = NewAsset(
        name=body.name,
        kind=body.asset_type,
        description=body.description or "",
        is_public=bool(body.is_public),
        data=stored_data(body),
    )
    asset = await asyncio.to_thread(context.platform.library.create, who, new)
    return {"asset": asset_body(asset), "transfer_api": _transfer(context, asset, who), "token": ""}


@router.get("")
async def listing(
    context: Ctx,
    who: Who,
    name: str | None = None,
    is_public: bool = False,
    owner: str | None = None,
    asset_type: Annotated[list[str] | None, Query()] = None,
    engine: Annotated[list[str] | None, Query()] = None,
    data_type: str | None = None,
    file_format: Annotated[list[str] | None, Query()] = None,
    engine_type: str | None = None,
    asset_ids: str | None = None,
    q: Annotated[str, Query(max_length=256)] = "",
    tag: Annotated[list[str] | None, Query(max_length=16)] = None,
    get_preview_urls: bool = False,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    """One's own assets, or with ``is_public`` everybody's public ones. ``q``: words of the
    name, description, tags or trigger words; ``tag``, repeated: tags that all must be there."""
    kinds = [kind for kind in asset_type or [] if kind in ASSET_KINDS]
    served = (
        (not asset_type or kinds)
        and (not engine or ENGINE in engine)
        and data_type in (None, "fp16")
        and (not file_format or "safetensors" in file_format)
        and engine_type in (None, "image")
    )
    if not served:
        return {"data": [], "has_more": False, "total": 0}
    query = AssetQuery(
        is_public=is_public,
        owner=owner,
        name=name,
        kinds=kinds,
        ids=[part.strip() for part in (asset_ids or "").split(",") if part.strip()],
        text=q,
        tags=tag or (),
        limit=limit,
        offset=offset,
    )
    page = await asyncio.to_thread(context.platform.library.list, who, query)
    return {
        "data": [asset_body(asset, _preview_url(context, asset)) for asset in page.assets],
        "has_more": offset + len(page.assets) < page.total,
        "total": page.total,
    }


@router.post("/{ref:path}/complete-upload")
async def complete_upload(
    ref: str, context: Ctx, who: Who, body: CompleteUpload | None = None
) -> dict[str, Any]:
    asset = await asyncio.to_thread(context.platform.library.complete, who, ref)
    if asset.status == "uploaded":
        await context.ingest.start(asset.id)
    return {"error": None}


@router.get("/{ref:path}")
async def get(ref: str, context: Ctx, who: Who) -> dict[str, Any]:
    asset = await asyncio.to_thread(context.platform.library.get, who, ref)
    body = asset_body(asset, _preview_url(context, asset))
    return {"asset": body, "transfer_api": _transfer(context, asset, who)}


@router.patch("/{ref:path}")
async def change(ref: str, body: ChangeAsset, context: Ctx, who: Who) -> dict[str, Any]:
    """Name, description, trigger words and tags; what an asset is never changes."""
    wanted = Change(body.name, body.description, body.trigger_words, body.tags)
    asset = await asyncio.to_thread(context.platform.library.update, who, ref, wanted)
    return {"asset": asset_body(asset, _preview_url(context, asset))}


@router.post("/{asset_id}/restore")
async def restore(asset_id: str, context: Ctx, who: Who) -> dict[str, Any]:
    """A deleted asset, for a week after it was deleted."""
    asset = await asyncio.to_thread(context.platform.library.restore, who, asset_id)
    return {"asset": asset_body(asset, _preview_url(context, asset))}


@router.delete("/{ref:path}")
async def delete(ref: str, context: Ctx, who: Who) -> dict[str, Any]:
    asset = await asyncio.to_thread(context.platform.library.delete, who, ref)
    return {"id": asset.id, "deleted_at": timestamp(asset.deleted_at_s or 0.0)}
