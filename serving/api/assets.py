"""The Asset Library: /v1/assets."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from assets.access import may
from assets.asset import ASSET_KINDS, Asset
from assets.asset import SERVED_ENGINE as ENGINE
from assets.library.records import Query as AssetQuery
from assets.library.uploads import NewAsset
from assets.principal import Principal
from assets.storage.object_paths import blob_key, part_key, upload_key
from serving.api import answers
from serving.api.context import Context, Ctx
from serving.api.dialects.octoai.assets import (
    ChangeAsset,
    CompleteUpload,
    CreateAsset,
    Short,
    asset_body,
    stored_data,
    timestamp,
)
from serving.api.keyed_route import CostlyRoute, KeyedRoute, SearchRoute, Who
from serving.api.openapi import answers_with
from serving.errors import InvalidRequest

router = APIRouter(prefix="/v1/assets", tags=["assets"], route_class=KeyedRoute)
search_router = APIRouter(prefix="/v1/assets", tags=["assets"], route_class=SearchRoute)
costly_router = APIRouter(prefix="/v1/assets", tags=["assets"], route_class=CostlyRoute)


#: Of a listing; ``after`` goes further.
MAX_OFFSET = 1_000_000
OneText = Annotated[str | None, Query(max_length=128)]
SomeTexts = Annotated[list[Short] | None, Query(max_length=16)]


def _transfer(context: Context, asset: Asset, who: Principal) -> dict[str, Any]:
    """Always a presigned URL, whatever was asked for: every client follows what it gets.

    Only who may change an asset that still waits for its bytes gets a URL to put them.
    """
    key = upload_key(asset.id)
    may_put = asset.status == "ready_to_upload" and may(who, "update", asset)
    if may_put and "upload" in asset.data:
        return {"type": "multipart", "upload_url": context.url(f"v1/assets/{asset.id}/upload")}
    original = asset.original if may(who, "download", asset) else None
    return {
        "type": "presigned-url",
        "put_url": context.signed_url("PUT", key) if may_put else "",
        "get_url": context.signed_url("GET", blob_key(original)) if original else "",
        "sha256": original.sha256 if original else "",
    }


def asset_answer(context: Context, asset: Asset, who: Principal) -> dict[str, Any]:
    preview_url = context.signed_url("GET", asset.preview) if asset.preview else None
    return asset_body(asset, inspected=may(who, "inspect", asset), preview_url=preview_url)


async def _note(context: Context, who: Principal, act: str, asset: Asset, **details: Any) -> None:
    """For the audit log of the organisation."""
    details["name"] = asset.reference
    await asyncio.to_thread(
        partial(context.backends.audit.note, who.tenant_id, who.key_id, act, asset.id, **details)
    )


@router.post("", **answers_with(answers.CreatedAsset))
async def create(body: CreateAsset, context: Ctx, who: Who) -> dict[str, Any]:
    if body.hf_token_secret:
        raise InvalidRequest(
            "hf_token_secret",
            "no secrets are kept here: only public "
            "repositories are imported; upload the file of a private one",
        )
    if body.url:
        context.fetcher.check(body.url)
    new = NewAsset(
        name=body.name,
        kind=body.asset_type,
        description=body.description or "",
        visibility=body.wanted_visibility(),
        shared_with=body.shared_with,
        expires_at_s=None if body.expires_at is None else body.expires_at.timestamp(),
        new_version=body.new_version,
        size_bytes=_part_upload_size(body),
        part_bytes=body.part_bytes,
        url=body.url,
        hf_repo=body.hf_repo,
        data=stored_data(body),
    )
    asset = await asyncio.to_thread(context.platform.library.uploads.create, who, new)
    if asset.is_import:
        await context.ingest.start(asset)
    transfer = _transfer(context, asset, who)
    return {"asset": asset_answer(context, asset, who), "transfer_api": transfer, "token": ""}


def _part_upload_size(body: CreateAsset) -> int | None:
    if body.transfer_api_type != "multipart":
        return None
    if body.size_bytes is None:
        raise InvalidRequest("size_bytes", "say how many bytes will be sent in parts")
    return body.size_bytes


@router.get("/{ref:path}/upload", **answers_with(answers.UploadState))
async def upload(ref: str, context: Ctx, who: Who) -> dict[str, Any]:
    """How far an upload in parts is, and where to PUT what is missing. May be asked as often as
    one likes; each time the URLs are fresh."""
    uploads = context.platform.library.uploads

    def look() -> dict[str, Any]:
        found = uploads.state(who, ref)
        return {
            "asset_id": found.asset.id,
            "size_bytes": found.size_bytes,
            "part_bytes": found.part_bytes,
            "part_count": found.part_count,
            "parts": [{"number": p.number, "size_bytes": p.size_bytes} for p in found.arrived],
            "missing": [
                {
                    "number": number,
                    "offset": (number - 1) * found.part_bytes,
                    "size_bytes": found.part_size(number),
                    "put_url": uploads.signed_part(found, number, context.url_expires_s)
                    or context.signed_url(
                        "PUT", part_key(upload_key(found.asset.id), found.upload_id, number)
                    ),
                }
                for number in found.missing
            ],
        }

    return await asyncio.to_thread(look)


@router.delete("/{ref:path}/upload", **answers_with(answers.DeletedAsset))
async def abort_upload(ref: str, context: Ctx, who: Who) -> dict[str, Any]:
    """End an upload that is not complete, of either kind."""
    asset = await asyncio.to_thread(context.platform.library.uploads.abort, who, ref)
    return {"id": asset.id, "deleted_at": timestamp(asset.deleted_at_s or 0.0)}


@search_router.get("", **answers_with(answers.AssetPage))
async def listing(
    context: Ctx,
    who: Who,
    name: OneText = None,
    is_public: bool = False,
    owner: OneText = None,
    asset_type: SomeTexts = None,
    engine: SomeTexts = None,
    data_type: OneText = None,
    file_format: SomeTexts = None,
    engine_type: OneText = None,
    asset_ids: Annotated[str | None, Query(max_length=4096)] = None,
    q: Annotated[str, Query(max_length=256)] = "",
    tag: SomeTexts = None,
    sha256: Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$")] = None,
    get_preview_urls: bool = False,
    shared: bool = False,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
    after: Annotated[str, Query(max_length=64)] = "",
) -> JSONResponse:
    """One's own assets, or with ``is_public`` everybody's public ones, or with ``shared`` those
    that others share. ``q``: words, with each of which one of its name, description
    or trigger words begins; ``tag``, repeated: tags that all must be there. ``after``, the last
    page's ``next``, goes on where that page ended, whatever was added or deleted since."""
    kinds = [kind for kind in asset_type or [] if kind in ASSET_KINDS]
    served = (
        (not asset_type or kinds)
        and (not engine or ENGINE in engine)
        and data_type in (None, "fp16")
        and (not file_format or "safetensors" in file_format)
        and engine_type in (None, "image")
    )
    if not served:
        return JSONResponse({"data": [], "has_more": False, "total": 0, "next": None})
    query = AssetQuery(
        visibility="public" if is_public else None,
        shared_with=who.tenant_name if shared else None,
        owner=owner,
        name=name,
        kinds=kinds,
        ids=[part.strip() for part in (asset_ids or "").split(",") if part.strip()],
        text=q,
        tags=tag or (),
        sha256=sha256,
        limit=limit,
        offset=offset,
        after=after,
    )
    page = await asyncio.to_thread(context.platform.library.list, who, query)
    # It is JSON already; FastAPI would walk through all of it to see.
    return JSONResponse(
        {
            "data": [asset_answer(context, asset, who) for asset in page.assets],
            "has_more": page.has_more,
            "total": page.total,
            "next": page.assets[-1].id if page.has_more else None,
        }
    )


@router.post("/{ref:path}/complete-upload", **answers_with(answers.Completed))
async def complete_upload(
    ref: str, context: Ctx, who: Who, body: CompleteUpload | None = None
) -> dict[str, Any]:
    asset = await asyncio.to_thread(context.platform.library.uploads.complete, who, ref)
    if asset.status == "uploaded":
        await context.ingest.start(asset)
    return {"error": None}


@router.get("/{ref:path}/residency", **answers_with(answers.AssetResidency))
async def residency(ref: str, context: Ctx, who: Who) -> dict[str, Any]:
    """Where each part of an asset lies now: replicas that have it on their device, and the tiers
    of each node. The store always has it."""
    found = await context.platform.residency(who, ref)
    parts = []
    for component, blob in found.asset.parts.items():
        place = found.places.get(blob.key)
        parts.append(
            {
                "component": component,
                "content_key": blob.key,
                "size_bytes": blob.size_bytes,
                "replicas": list(place.replicas) if place else [],
                "nodes": {n: list(tiers) for n, tiers in place.nodes.items()} if place else {},
            }
        )
    return {"asset_id": found.asset.id, "parts": parts}


@router.get("/{ref:path}", **answers_with(answers.AssetWithTransfer))
async def get(ref: str, context: Ctx, who: Who) -> dict[str, Any]:
    asset = await asyncio.to_thread(context.platform.library.get, who, ref)
    transfer = _transfer(context, asset, who)
    return {"asset": asset_answer(context, asset, who), "transfer_api": transfer}


@costly_router.post("/{ref:path}/warm", **answers_with(answers.Warmed))
async def warm(ref: str, context: Ctx, who: Who) -> dict[str, Any]:
    """Bring an asset's bytes up on every node, before anybody waits for them."""
    tiers = await context.platform.warm(who, ref)
    return {"asset_id": ref, "found_on": tiers}


@router.patch("/{ref:path}", **answers_with(answers.OneAsset))
async def change(ref: str, body: ChangeAsset, context: Ctx, who: Who) -> dict[str, Any]:
    """What people read of it, who may see it, and what a checkpoint's UNet predicts; an asset's
    bytes never change."""
    asset = await asyncio.to_thread(context.platform.library.update, who, ref, body.change())
    is_shared = body.visibility is not None or body.shared_with is not None
    if is_shared:
        seen_by = {"visibility": asset.visibility, "shared_with": list(asset.shared_with)}
        await _note(context, who, "asset.share", asset, **seen_by)
    if is_shared or body.prediction_type is not None:
        await context.ingest.start(asset)  # its content keys may have to be others now
    return {"asset": asset_answer(context, asset, who)}


@router.post("/{asset_id}/restore", **answers_with(answers.OneAsset))
async def restore(asset_id: str, context: Ctx, who: Who) -> dict[str, Any]:
    """A deleted asset, for a week after it was deleted."""
    asset = await asyncio.to_thread(context.platform.library.restore, who, asset_id)
    await _note(context, who, "asset.restore", asset)
    return {"asset": asset_answer(context, asset, who)}


@router.delete("/{ref:path}", **answers_with(answers.DeletedAsset))
async def delete(ref: str, context: Ctx, who: Who, for_good: bool = False) -> dict[str, Any]:
    """It can be restored for a week, and counts against the storage until then; with ``for_good``
    neither."""
    asset = await asyncio.to_thread(
        partial(context.platform.library.delete, who, ref, for_good=for_good)
    )
    await _note(context, who, "asset.delete", asset)
    await context.platform.forget_dead({blob.key for blob in asset.parts.values()})
    return {"id": asset.id, "deleted_at": timestamp(asset.deleted_at_s or 0.0)}
