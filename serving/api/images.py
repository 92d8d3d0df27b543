"""Reading of images that come from outside."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request

from assets.errors import TooLarge
from serving.api.keyed_route import SearchRoute
from serving.api.models.images import ImageParameters
from serving.api.route_options import reads_bytes
from serving.generation.image_metadata import MAX_FILE_BYTES, text_of
from serving.generation.parameters import read_parameters

router = APIRouter(prefix="/v1/images", tags=["generate"], route_class=SearchRoute)


@router.post(
    "/parameters",
    openapi_extra=reads_bytes("image/png", "image/jpeg", "image/webp", "application/octet-stream"),
)
async def read_image_parameters(request: Request) -> ImageParameters:
    """Read the parameters that an image's metadata has, as A1111 and others write them."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_FILE_BYTES:
            raise TooLarge(f"the image exceeds the limit of {MAX_FILE_BYTES} bytes")
    return await asyncio.to_thread(_read, bytes(data))


def _read(data: bytes) -> ImageParameters:
    text = text_of(data)
    if text is None:
        return ImageParameters(text=None, prompt="", negative_prompt="", settings={})
    found = read_parameters(text)
    return ImageParameters(
        text=text,
        prompt=found.prompt,
        negative_prompt=found.negative_prompt,
        settings=dict(found.settings),
    )
