"""An asset's preview image: uploaded, or generated with the asset."""

from __future__ import annotations

import asyncio
import hashlib

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from assets.asset import Asset
from assets.errors import InvalidAsset, TooLarge
from assets.kinds import KINDS
from assets.library.preview import MAX_BYTES, preview_of
from assets.principal import Principal
from assets.storage.object_paths import preview_key
from assets.storage.object_store import put_bytes
from serving.api import idempotency
from serving.api.assets import asset_answer
from serving.api.context import Context, Ctx
from serving.api.keyed_route import Authenticated, CostlyRoute, KeyedRoute
from serving.api.models.assets import OneAsset
from serving.api.request_model import RequestModel
from serving.api.route_options import reads_bytes, reads_headers
from serving.generation.contract import GenerationParams, GenerationRequest

router = APIRouter(prefix="/v1/assets", tags=["assets"], route_class=KeyedRoute)
costly_router = APIRouter(prefix="/v1/assets", tags=["assets"], route_class=CostlyRoute)


class GeneratePreview(RequestModel):
    """A generated preview; ``weight`` is a LoRA's."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(default="a portrait, detailed", max_length=10_000)
    seed: int = Field(default=0, ge=0, lt=2**32)
    steps: int = Field(default=20, gt=0, le=50)
    cfg_scale: float = Field(default=7.0, gt=0, le=50)
    weight: float = Field(default=1.0, ge=-10, le=10)


@router.put(
    "/{ref:path}/preview",
    openapi_extra=reads_bytes("image/png", "image/jpeg", "image/webp", "application/octet-stream"),
)
async def put_preview(
    ref: str, request: Request, context: Ctx, principal: Authenticated
) -> OneAsset:
    """Upload a PNG, JPEG or WebP; a smaller PNG is stored."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise TooLarge(f"the image exceeds the limit of {MAX_BYTES} bytes")
    asset = await asyncio.to_thread(context.platform.library.get, principal, ref)
    await asyncio.to_thread(context.platform.library.editing.check, principal, asset.id)
    return await _store(context, principal, asset, await asyncio.to_thread(preview_of, bytes(data)))


@costly_router.post(
    "/{ref:path}/preview",
    openapi_extra=reads_headers(Idempotency_Key="Requests with the same key are charged once."),
)
async def generate_preview(
    ref: str, body: GeneratePreview, request: Request, context: Ctx, principal: Authenticated
) -> OneAsset:
    """Generate a preview, deterministically; charged once per ``Idempotency-Key``."""
    asset = await asyncio.to_thread(context.platform.library.get, principal, ref)
    await asyncio.to_thread(context.platform.library.editing.check, principal, asset.id)
    generation_request = _generation_request(asset, body)
    key = idempotency.key_of(request)
    charge_id = None
    if key is not None:
        charge_id = "preview_" + context.signer.derived("preview", principal.tenant_id, key)
    generated = await context.platform.generate(principal, generation_request, charge_id)
    try:
        if generated.result.is_removed(0):
            raise InvalidAsset("prompt", "the operator's policy withholds this preview")
        image = preview_of(generated.result.images[0])
        response = await _store(context, principal, asset, image)
    except BaseException:
        await context.platform.release(generated)
        raise
    await context.platform.settle(generated)
    return response


def _generation_request(asset: Asset, body: GeneratePreview) -> GenerationRequest:
    words = ", ".join(asset.trigger_words)
    traits = KINDS[asset.kind]
    selection = traits.select(asset.id, body.weight)
    if traits.needs_trigger_word and not words:
        raise InvalidAsset("trigger_words", f"the {asset.kind} has no trigger word; set one first")
    prompt = f"{words}, {body.prompt}" if words else body.prompt
    params = GenerationParams(
        prompt=prompt, steps=body.steps, cfg_scale=body.cfg_scale, encoding="png"
    )
    return GenerationRequest(params=params, seeds=(body.seed,), selection=selection)


async def _store(context: Context, principal: Principal, asset: Asset, image: bytes) -> OneAsset:
    key = preview_key(asset.id, hashlib.sha256(image).hexdigest())
    await asyncio.to_thread(put_bytes, context.backends.store, key, image)
    await asyncio.to_thread(context.backends.blobs.keep, key, asset.tenant_id, len(image))
    changed = await asyncio.to_thread(
        context.platform.library.editing.set_preview, principal, asset.id, key
    )
    return OneAsset(asset=asset_answer(context, changed, principal))
