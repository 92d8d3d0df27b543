"""Limits on requests before routing: text, head size, body size and rate."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assets.library.preview import MAX_BYTES as MAX_PREVIEW_BYTES
from assets.text import is_storable
from serving.api.protocol import MAX_HEAD_BYTES
from serving.errors import InvalidRequest
from serving.generation.image_metadata import MAX_FILE_BYTES

MAX_JSON_BYTES = 1 << 20
#: JSON declared longer gets a 413, shorter over MAX_JSON_BYTES a 422.
MAX_BODY_BYTES = 16 << 20
#: For a whole body in memory.
BODY_S = 30.0
#: Slower uploads over PACE_S are aborted.
MIN_UPLOAD_BYTES_PER_S = 8 << 10
PACE_S = 30.0
_UPLOAD = re.compile(r"/objects/")
_PARAMETERS = "/v1/images/parameters"
_PREVIEW = re.compile(r"/v1/assets/.+/preview\Z")


class LimitsMiddleware:
    """ASGI middleware that enforces the limits.

    Raises:
        HTTPException: 400, NUL in the URL; 408, slow body; 413, long body; 415, compressed body;
            431, long head.
        InvalidRequest: the body exceeds any valid one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _check_head(scope)
        if _UPLOAD.match(scope["path"]):
            receive = _paced(receive)  # the route limits the size
        else:
            is_preview = scope["method"] == "PUT" and _PREVIEW.match(scope["path"])
            limit = MAX_PREVIEW_BYTES if is_preview else MAX_JSON_BYTES
            if scope["path"] == _PARAMETERS:
                limit = MAX_FILE_BYTES
            declared = int(Headers(scope=scope).get("content-length", 0))
            receive = _bounded(receive, limit, declared)
        await self._app(scope, receive, send)


def _check_head(scope: Scope) -> None:
    headers = scope["headers"]
    size = len(scope["query_string"]) + len(scope["raw_path"])
    if size + sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        raise HTTPException(431, f"the URL and headers exceed {MAX_HEAD_BYTES} bytes")
    query = unquote_to_bytes(scope["query_string"]).decode(errors="replace")
    if not (is_storable(scope["path"]) and is_storable(query)):
        raise HTTPException(400, "the URL contains NUL")
    encoding = Headers(scope=scope).get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise HTTPException(
            415, f"Content-Encoding {encoding[:40]} is not supported; send the body uncompressed"
        )


def _bounded(receive: Receive, limit: int, declared: int) -> Receive:
    """Checked when the route reads the body: after authentication."""
    received = 0
    deadline: float | None = None
    is_whole = False

    async def receive_bounded() -> Message:
        nonlocal received, deadline, is_whole
        if is_whole:
            return await receive()  # waits for the disconnect
        if declared > limit:
            raise _too_long(declared, limit)
        deadline = deadline or asyncio.get_running_loop().time() + BODY_S
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the body took longer than {BODY_S:.0f} s") from None
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_long(None, limit)
        is_whole = not message.get("more_body", False)
        return message

    return receive_bounded


def _paced(receive: Receive) -> Receive:
    bytes_in_period, period_end = 0, 0.0
    is_whole = False

    async def receive_paced() -> Message:
        nonlocal bytes_in_period, period_end, is_whole
        if is_whole:
            return await receive()
        now = asyncio.get_running_loop().time()
        if now >= period_end or bytes_in_period >= MIN_UPLOAD_BYTES_PER_S * PACE_S:
            bytes_in_period, period_end = 0, now + PACE_S
        try:
            async with asyncio.timeout_at(period_end):
                message = await receive()
        except TimeoutError:
            rate = f"{MIN_UPLOAD_BYTES_PER_S >> 10} KiB/s"
            raise HTTPException(408, f"the upload is slower than {rate}") from None
        bytes_in_period += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        return message

    return receive_paced


def _too_long(declared: int | None, limit: int) -> Exception:
    """Valid fields keep JSON below MAX_JSON_BYTES, so slightly longer bodies get a 422."""
    reason = f"the body exceeds {limit} bytes"
    if limit != MAX_JSON_BYTES or declared is None or declared > MAX_BODY_BYTES:
        return HTTPException(413, reason)
    return InvalidRequest("body", reason)
