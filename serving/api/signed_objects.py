"""Uploads and downloads by signed URL, for stores that cannot sign, and image files.

Bodies are streamed.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, BinaryIO

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response, StreamingResponse

from assets.errors import AssetNotFound, TooLarge
from assets.failpoint import reach
from assets.storage.object_paths import image_key
from assets.storage.object_store import CHUNK_BYTES, ObjectStore
from serving.api.context import Context, Ctx
from serving.api.keyed_route import OpenRoute
from serving.api.models.assets import Received
from serving.api.route_options import answers_bytes, reads_bytes
from serving.errors import Busy

router = APIRouter(tags=["objects"], route_class=OpenRoute)

Token = Annotated[str, Query(max_length=256)]
#: How long a key stays locked after a gateway dies.
_LEASE_S = 60.0
_BYTES = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d{1,18})-\Z")
_IMAGE_NAME = re.compile(r"[A-Za-z0-9_-]{20,64}\.(jpeg|png|webp)\Z")


@router.put(
    "/objects/{key:path}",
    openapi_extra=reads_bytes(_BYTES),
)
async def put_object(key: str, token: Token, request: Request, context: Ctx) -> Received:
    """Upload an object, visible when complete."""
    context.signer.verify("PUT", key, token, time.time())
    uploads = context.platform.library.uploads
    declared = request.headers.get("content-length")
    async with _upload_lock(context, key):
        limit = await asyncio.to_thread(uploads.begin, key, int(declared) if declared else None)
        received = 0
        try:
            received = await _receive(context.backends.store, key, request.stream(), limit)
            reach("upload.received")
        finally:
            await asyncio.to_thread(uploads.ended, key, received)
    return Received(size_bytes=received)


@asynccontextmanager
async def _upload_lock(context: Context, key: str) -> AsyncIterator[None]:
    """Allow one upload at a time to a key, across gateways.

    Raises:
        Busy: another is in progress.
    """
    periodic, name = context.backends.periodic, f"put/{key}"
    if not await asyncio.to_thread(periodic.claim, name, _LEASE_S):
        raise Busy("another upload to this URL is in progress; retry when it has ended")

    async def renew() -> None:
        while True:
            await asyncio.sleep(_LEASE_S / 3)
            await asyncio.to_thread(periodic.renew, name)

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        await asyncio.to_thread(periodic.end, name)


async def _receive(store: ObjectStore, key: str, chunks: AsyncIterator[bytes], limit: int) -> int:
    writer = store.write(key)
    file: BinaryIO = await asyncio.to_thread(writer.__enter__)
    received = 0
    pending: list[bytes] = []
    pending_bytes = 0
    try:
        async for chunk in chunks:
            received += len(chunk)
            if received > limit:
                raise TooLarge(f"the upload exceeds the limit of {limit} bytes")
            pending.append(chunk)
            pending_bytes += len(chunk)
            if pending_bytes >= CHUNK_BYTES:
                await asyncio.to_thread(_write, file, pending)
                pending, pending_bytes = [], 0
        await asyncio.to_thread(_write, file, pending)
    except BaseException:
        await asyncio.to_thread(writer.__exit__, *sys.exc_info())
        raise
    await asyncio.to_thread(writer.__exit__, None, None, None)
    return received


def _write(file: BinaryIO, chunks: list[bytes]) -> None:
    for chunk in chunks:
        file.write(chunk)


@router.get("/objects/{key:path}", **answers_bytes(_BYTES, "image/png", statuses=(200, 206)))
async def get_object(key: str, token: Token, request: Request, context: Ctx) -> Response:
    """Download an object; ``Range: bytes=N-`` resumes at byte N."""
    context.signer.verify("GET", key, token, time.time())
    if not await asyncio.to_thread(context.platform.library.upkeep.is_downloadable, key):
        raise AssetNotFound(key)
    is_image = key.startswith("previews/")
    begin = _RANGE.match(request.headers.get("range", ""))
    kind = "image/png" if is_image else _BYTES
    return await _send(context.backends.store, key, kind, int(begin[1]) if begin else None)


@router.get("/files/{name}", **answers_bytes("image/jpeg", "image/png", "image/webp"))
async def get_image(name: str, context: Ctx) -> Response:
    """Download a generated image by its unguessable name."""
    match = _IMAGE_NAME.match(name)
    if match is None:
        raise AssetNotFound(name)
    return await _send(context.backends.store, image_key(name), f"image/{match[1]}")


async def _send(
    store: ObjectStore, key: str, media_type: str, begin: int | None = None
) -> Response:
    size = await asyncio.to_thread(store.size, key)
    if size is None:
        raise AssetNotFound(key)
    headers = {"X-Content-Type-Options": "nosniff", "Accept-Ranges": "bytes"}
    if begin is not None and begin >= size:
        headers["Content-Range"] = f"bytes */{size}"
        raise HTTPException(416, f"the file has only {size} bytes", headers)
    source = await asyncio.to_thread(store.open, key)
    status = 200
    if begin is not None:
        status = 206
        headers["Content-Range"] = f"bytes {begin}-{size - 1}/{size}"
        await asyncio.to_thread(source.seek, begin)
    headers["Content-Length"] = str(size - (begin or 0))
    return StreamingResponse(_chunks(source), status, headers, media_type)


async def _chunks(source: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while chunk := await asyncio.to_thread(source.read, CHUNK_BYTES):
            yield chunk
    finally:
        source.close()
