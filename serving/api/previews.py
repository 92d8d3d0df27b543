"""An asset's preview picture: uploaded, or drawn with the asset by the platform."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from assets.asset import Asset
from assets.errors import InvalidAsset, TooLarge
from assets.library.preview import MAX_BYTES, preview_of
from assets.library.resolve import AssetSelection
from assets.principal import Principal
from assets.storage.object_paths import preview_key
from assets.storage.object_store import put_bytes
from serving.api import answers, idempotency
from serving.api.assets import asset_answer
from serving.api.context import Context, Ctx
from serving.api.keyed_route import CostlyRoute, KeyedRoute, Who
from serving.api.openapi import answers_with, reads_bytes, reads_headers
from serving.api.request_model import RequestModel
from serving.generation.service import GenerationRequest

router = APIRouter(prefix="/v1/assets", tags=["assets"], route_class=KeyedRoute)
costly_router = APIRouter(prefix="/v1/assets", tags=["assets"], route_class=CostlyRoute)


class GeneratePreview(RequestModel):
    model_config = ConfigDict(extra="forbid")

    prompt: str = Field("a portrait, detailed", max_length=10_000)
    seed: int = Field(0, ge=0, lt=2**32)
    steps: int = Field(20, gt=0, le=50)
    cfg_scale: float = Field(7.0, gt=0, le=50)
    weight: float = Field(1.0, ge=-10, le=10)


@router.put(
    "/{ref:path}/preview",
    **answers_with(answers.OneAsset),
    openapi_extra=reads_bytes("image/png", "image/jpeg", "image/webp"),
)
async def upload(ref: str, request: Request, context: Ctx, who: Who) -> dict[str, Any]:
    """The body is the picture: PNG, JPEG or WebP. A smaller PNG of it is kept."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise TooLarge(f"more than the {MAX_BYTES} bytes that are accepted")
    asset = await asyncio.to_thread(context.platform.library.get, who, ref)
    await asyncio.to_thread(context.platform.library.check_update, who, asset.id)
    return await _keep(context, who, asset, await asyncio.to_thread(preview_of, bytes(data)))


@costly_router.post(
    "/{ref:path}/preview",
    **answers_with(answers.OneAsset),
    openapi_extra=reads_headers(Idempotency_Key="With the same key it is charged once."),
)
async def generate(
    ref: str, body: GeneratePreview, request: Request, context: Ctx, who: Who
) -> dict[str, Any]:
    """Have the platform draw it, with the asset; charged like any picture, and with an
    ``Idempotency-Key`` once (the same order draws the same picture)."""
    asset = await asyncio.to_thread(context.platform.library.get, who, ref)
    await asyncio.to_thread(context.platform.library.check_update, who, asset.id)
    order = _order(asset, body)
    key = idempotency.key_of(request)
    charge_id = None
    if key is not None:
        charge_id = "preview_" + context.signer.derived("preview", who.tenant_id, key)
    generated = await context.platform.generate(who, order, charge_id)
    try:
        image = preview_of(generated.result.images[0])
        answer = await _keep(context, who, asset, image)
    except BaseException:
        await context.platform.release(generated)
        raise
    await context.platform.settle(generated)
    return answer


def _order(asset: Asset, body: GeneratePreview) -> GenerationRequest:
    """With the asset in it, and its words before the prompt."""
    words = ", ".join(asset.trigger_words)
    wanted = {
        "lora": AssetSelection(loras={asset.id: body.weight}),
        "checkpoint": AssetSelection(checkpoint=asset.id),
        "vae": AssetSelection(vae=asset.id),
        "textual_inversion": AssetSelection(inversions={asset.id: ""}),
    }[asset.kind]
    if asset.kind == "textual_inversion" and not words:
        raise InvalidAsset("trigger_words", "give the inversion a trigger word first")
    prompt = f"{words}, {body.prompt}" if words else body.prompt
    return GenerationRequest(
        prompt, (body.seed,), wanted, steps=body.steps, cfg_scale=body.cfg_scale, encoding="png"
    )


async def _keep(context: Context, who: Principal, asset: Asset, image: bytes) -> dict[str, Any]:
    key = preview_key(asset.id, hashlib.sha256(image).hexdigest())
    await asyncio.to_thread(put_bytes, context.backends.store, key, image)
    await asyncio.to_thread(context.backends.blobs.keep, key, asset.tenant_id, len(image))
    changed = await asyncio.to_thread(context.platform.library.set_preview, who, asset.id, key)
    return {"asset": asset_answer(context, changed, who)}
