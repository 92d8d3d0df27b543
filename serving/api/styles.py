"""The routes of styles: /v1/styles."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from assets.asset import Asset
from assets.hints import Hints
from assets.library.records import Query as AssetQuery
from assets.library.uploads import NewAsset
from serving.api.context import Ctx
from serving.api.keyed_route import Authenticated, KeyedRoute
from serving.api.models.styles import NewStyle, StyleInfo, Styles
from serving.errors import InvalidRequest
from serving.generation.style_presets import presets
from serving.generation.styles import PLACE

router = APIRouter(prefix="/v1/styles", tags=["styles"], route_class=KeyedRoute)


@router.get("")
async def list_styles(
    context: Ctx,
    principal: Authenticated,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    after: Annotated[str, Query(max_length=64)] = "",
) -> Styles:
    """List the built-in styles, on the first page, and the organisation's own."""
    query = AssetQuery(kinds=("style",), limit=limit, after=after)
    page = await asyncio.to_thread(context.platform.library.list, principal, query)
    built_in = [
        StyleInfo(
            name=style.name,
            prompt=style.prompt,
            negative_prompt=style.negative_prompt,
            version=style.version,
            asset_id=None,
        )
        for style in presets().values()
        if not after
    ]
    own = [_info(asset) for asset in page.assets]
    return Styles(styles=built_in + own, next=page.assets[-1].id if page.has_more else None)


@router.post("")
async def create_style(body: NewStyle, context: Ctx, principal: Authenticated) -> StyleInfo:
    """Create a style, usable at once. It is an asset: change, share and delete it as such."""
    check_style_name(body.name)
    new = NewAsset(
        name=body.name,
        kind="style",
        description=body.description,
        new_version=body.new_version,
        hints=Hints(prompt=body.prompt, negative_prompt=body.negative_prompt or None),
    )
    asset = await asyncio.to_thread(context.platform.library.uploads.create, principal, new)
    return _info(asset)


def check_style_name(name: str) -> None:
    """Raise InvalidRequest if a built-in style has the name: a request could not name this one."""
    if name in presets():
        raise InvalidRequest("name", f"{name!r} is a built-in style; choose another name")


def _info(asset: Asset) -> StyleInfo:
    hints = asset.advice
    return StyleInfo(
        name=asset.name,
        prompt=hints.prompt or PLACE,
        negative_prompt=hints.negative_prompt or "",
        version=asset.version,
        asset_id=asset.id,
    )
