"""The routes of the Asset Library: /v1/assets."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query

from assets.access import may
from assets.asset import ASSET_KINDS, INCOMPLETE, Asset
from assets.asset import SERVED_ENGINE as ENGINE
from assets.kinds import KINDS
from assets.library.records import Query as AssetQuery
from assets.principal import Principal
from assets.storage.object_paths import blob_key, part_key, upload_key
from serving.api.context import Context, Ctx
from serving.api.dialects.octoai.assets import (
    ChangeAsset,
    CompleteUpload,
    CreateAsset,
    Short,
)
from serving.api.keyed_route import Authenticated, CostlyRoute, KeyedRoute, SearchRoute
from serving.api.models import assets as models
from serving.api.models.generation import AssetResidency, PartResidency, Warmed
from serving.api.styles import check_style_name
from serving.errors import InvalidRequest
from serving.generation.style_presets import presets

router = APIRouter(prefix="/v1/assets", tags=["assets"], route_class=KeyedRoute)
search_router = APIRouter(prefix="/v1/assets", tags=["assets"], route_class=SearchRoute)
costly_router = APIRouter(prefix="/v1/assets", tags=["assets"], route_class=CostlyRoute)


#: ``after`` pages further.
MAX_OFFSET = 1_000_000
OneText = Annotated[str | None, Query(max_length=128)]
SomeTexts = Annotated[list[Short], Query(default_factory=list, max_length=16)]


def _transfer(context: Context, asset: Asset, principal: Principal) -> models.Transfer:
    """URLs are empty unless the principal may use them now."""
    key = upload_key(asset.id)
    may_put = asset.status in INCOMPLETE and may(principal, "update", asset)
    if may_put and asset.upload is not None:
        url = context.url(f"v1/assets/{asset.id}/upload")
        return models.Transfer(type="multipart", upload_url=url)
    original = asset.original if may(principal, "download", asset) else None
    return models.Transfer(
        type="presigned-url",
        put_url=context.signed_url("PUT", key) if may_put else "",
        get_url=context.signed_url("GET", blob_key(original)) if original else "",
        sha256=original.sha256 if original else "",
    )


def asset_answer(context: Context, asset: Asset, principal: Principal) -> models.Asset:
    preview_url = context.signed_url("GET", asset.preview) if asset.preview else None
    inspected = may(principal, "inspect", asset)
    return models.Asset.of(asset, inspected=inspected, preview_url=preview_url)


async def _note(
    context: Context, principal: Principal, act: str, asset: Asset, **details: Any
) -> None:
    details["name"] = asset.reference
    await asyncio.to_thread(
        partial(
            context.backends.audit.note,
            principal.tenant_id,
            principal.key_id,
            act,
            asset.id,
            **details,
        )
    )


@router.post("")
async def create_asset(
    body: CreateAsset, context: Ctx, principal: Authenticated
) -> models.CreatedAsset:
    """Create an asset to upload, or to import from ``url`` or ``hf_repo``."""
    if body.hf_token_secret:
        raise InvalidRequest(
            "hf_token_secret",
            "secrets are not stored and only public repositories are imported; "
            "upload the file of a private repository",
        )
    if body.asset_type == "style":
        check_style_name(body.name)
    if body.url:
        context.fetcher.check(body.url)
    new = body.new_asset(_part_upload_size(body))
    asset = await asyncio.to_thread(context.platform.library.uploads.create, principal, new)
    if asset.is_import:
        await context.ingest.start(asset)
    return models.CreatedAsset(
        asset=asset_answer(context, asset, principal),
        transfer_api=_transfer(context, asset, principal),
        token="",
    )


def _part_upload_size(body: CreateAsset) -> int | None:
    if body.transfer_api_type != "multipart":
        return None
    if body.size_bytes is None:
        raise InvalidRequest("size_bytes", "a multipart upload needs its total size in bytes")
    return body.size_bytes


@router.get("/{ref:path}/upload")
async def get_upload(ref: str, context: Ctx, principal: Authenticated) -> models.UploadState:
    """Return a multipart upload's state, with new URLs for missing parts."""
    uploads = context.platform.library.uploads

    def read_state() -> models.UploadState:
        state = uploads.state(principal, ref)
        return models.UploadState(
            asset_id=state.asset.id,
            size_bytes=state.session.size_bytes,
            part_bytes=state.session.part_bytes,
            part_count=state.part_count,
            parts=[
                models.ArrivedPart(number=part.number, size_bytes=part.size_bytes)
                for part in state.arrived
            ],
            missing=[
                models.MissingPart(
                    number=number,
                    offset=(number - 1) * state.session.part_bytes,
                    size_bytes=state.part_size(number),
                    put_url=uploads.signed_part(state, number, context.url_expires_s)
                    or context.signed_url(
                        "PUT", part_key(upload_key(state.asset.id), state.session.id, number)
                    ),
                )
                for number in state.missing
            ],
        )

    return await asyncio.to_thread(read_state)


@router.delete("/{ref:path}/upload")
async def abort_upload(ref: str, context: Ctx, principal: Authenticated) -> models.DeletedAsset:
    """Abort an incomplete upload and delete the asset."""
    asset = await asyncio.to_thread(context.platform.library.uploads.abort, principal, ref)
    return models.DeletedAsset.of(asset)


@search_router.get("")
async def list_assets(
    context: Ctx,
    principal: Authenticated,
    asset_type: SomeTexts,
    engine: SomeTexts,
    file_format: SomeTexts,
    tag: SomeTexts,
    name: OneText = None,
    is_public: bool = False,
    owner: OneText = None,
    data_type: OneText = None,
    engine_type: OneText = None,
    asset_ids: Annotated[str | None, Query(max_length=4096)] = None,
    q: Annotated[str, Query(max_length=256)] = "",
    sha256: Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$")] = None,
    get_preview_urls: bool = False,
    shared: bool = False,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
    after: Annotated[str, Query(max_length=64)] = "",
) -> models.AssetPage:
    """List the organisation's assets, all public ones, or those shared with it.

    Each word of ``q`` must be a prefix of a word of the name, description or trigger words; all
    ``tag`` values must match. ``after`` is the last page's ``next``, valid despite changes.
    """
    # OctoAI's clients cannot read kinds that they do not know.
    kinds = [k for k in ASSET_KINDS if k in asset_type or (not asset_type and KINDS[k].has_file)]
    is_supported = (
        bool(kinds)
        and (not engine or ENGINE in engine)
        and data_type in (None, "fp16")
        and (not file_format or "safetensors" in file_format)
        and engine_type in (None, "image")
    )
    if not is_supported:
        return models.AssetPage(data=[], has_more=False, total=0, next=None)
    query = AssetQuery(
        visibility="public" if is_public else None,
        shared_with=principal.tenant_name if shared else None,
        owner=owner,
        name=name,
        kinds=kinds,
        ids=[part.strip() for part in (asset_ids or "").split(",") if part.strip()],
        text=q,
        tags=tag,
        sha256=sha256,
        limit=limit,
        offset=offset,
        after=after,
    )
    page = await asyncio.to_thread(context.platform.library.list, principal, query)
    return models.AssetPage(
        data=[asset_answer(context, asset, principal) for asset in page.assets],
        has_more=page.has_more,
        total=page.total,
        next=page.assets[-1].id if page.has_more else None,
    )


@router.post("/{ref:path}/complete-upload")
async def complete_upload(
    ref: str, context: Ctx, principal: Authenticated, body: CompleteUpload | None = None
) -> models.Completed:
    """Complete an upload and start the ingest; repeatable."""
    asset = await asyncio.to_thread(context.platform.library.uploads.complete, principal, ref)
    if asset.status == "uploaded":
        await context.ingest.start(asset)
    return models.Completed(error=None)


@router.get("/{ref:path}/residency")
async def get_asset_residency(ref: str, context: Ctx, principal: Authenticated) -> AssetResidency:
    """Return the replicas and tiers by node that hold each part."""
    residency = await context.placement.residency(principal, ref)
    parts = []
    for component, blob in residency.asset.parts.items():
        place = residency.places.get(blob.key)
        parts.append(
            PartResidency(
                component=component,
                content_key=blob.key,
                size_bytes=blob.size_bytes,
                replicas=list(place.replicas) if place else [],
                nodes={n: list(tiers) for n, tiers in place.nodes.items()} if place else {},
            )
        )
    return AssetResidency(asset_id=residency.asset.id, parts=parts)


@router.get("/{ref:path}")
async def get_asset(ref: str, context: Ctx, principal: Authenticated) -> models.AssetWithTransfer:
    """Return an asset, with its download or upload URL."""
    asset = await asyncio.to_thread(context.platform.library.get, principal, ref)
    return models.AssetWithTransfer(
        asset=asset_answer(context, asset, principal),
        transfer_api=_transfer(context, asset, principal),
    )


@costly_router.post("/{ref:path}/warm")
async def warm_asset(ref: str, context: Ctx, principal: Authenticated) -> Warmed:
    """Load an asset into every node's host RAM."""
    tiers = await context.placement.warm(principal, ref)
    return Warmed(asset_id=ref, found_on=dict(tiers))


@router.patch("/{ref:path}")
async def update_asset(
    ref: str, body: ChangeAsset, context: Ctx, principal: Authenticated
) -> models.OneAsset:
    """Change an asset's description, visibility or prediction type, never its bytes."""
    if body.name in presets():
        known = await asyncio.to_thread(context.platform.library.get, principal, ref)
        if known.kind == "style":
            check_style_name(body.name or "")
    asset = await asyncio.to_thread(
        context.platform.library.editing.update, principal, ref, body.change()
    )
    is_shared = body.visibility is not None or body.shared_with is not None
    if is_shared:
        seen_by = {"visibility": asset.visibility, "shared_with": list(asset.shared_with)}
        await _note(context, principal, "asset.share", asset, **seen_by)
    if is_shared or body.prediction_type is not None:
        await context.ingest.start(asset)  # content keys may change
    return models.OneAsset(asset=asset_answer(context, asset, principal))


@router.post("/{asset_id}/restore")
async def restore_asset(asset_id: str, context: Ctx, principal: Authenticated) -> models.OneAsset:
    """Restore an asset within a week of its deletion."""
    asset = await asyncio.to_thread(context.platform.library.removal.restore, principal, asset_id)
    await _note(context, principal, "asset.restore", asset)
    return models.OneAsset(asset=asset_answer(context, asset, principal))


@router.delete("/{ref:path}")
async def delete_asset(
    ref: str, context: Ctx, principal: Authenticated, for_good: bool = False
) -> models.DeletedAsset:
    """Delete an asset; restorable and stored for a week unless ``for_good``."""
    asset = await asyncio.to_thread(
        partial(context.platform.library.removal.delete, principal, ref, for_good=for_good)
    )
    await _note(context, principal, "asset.delete", asset)
    await context.placement.forget_dead({blob.key for blob in asset.parts.values()})
    return models.DeletedAsset.of(asset)
