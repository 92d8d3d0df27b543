"""What a request may be, before any route sees it: its text, the size of its head, and the size
and pace of its body."""

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

MAX_JSON_BYTES = 1 << 20
#: The limit of any body that is not an upload.
MAX_BODY_BYTES = 16 << 20
#: From its first byte to its last, of a body that is read into memory.
BODY_S = 30.0
#: An upload that is slower than this, over any span of PACE_S, is ended.
MIN_UPLOAD_BYTES_PER_S = 8 << 10
PACE_S = 30.0
_UPLOAD = re.compile(r"/objects/")
_PREVIEW = re.compile(r"/v1/assets/.+/preview\Z")


class Limits:
    """Raises HTTPException: 400, text that cannot be stored; 408, a body that comes too slowly;
    413, one that is far too long; 415, one that is compressed; 431, a head that is too long.
    InvalidRequest: a body that is too long for what it can be."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _check_head(scope)
        if _UPLOAD.match(scope["path"]):
            receive = _paced(receive)  # how many bytes, the upload itself says
        else:
            is_preview = scope["method"] == "PUT" and _PREVIEW.match(scope["path"])
            most = MAX_PREVIEW_BYTES if is_preview else MAX_JSON_BYTES
            declared = int(Headers(scope=scope).get("content-length", 0))
            receive = _bounded(receive, most, declared)
        await self._app(scope, receive, send)


def _check_head(scope: Scope) -> None:
    headers = scope["headers"]
    size = len(scope["query_string"]) + len(scope["raw_path"])
    if size + sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        raise HTTPException(431, f"more than {MAX_HEAD_BYTES} bytes of URL and headers")
    query = unquote_to_bytes(scope["query_string"]).decode(errors="replace")
    if not (is_storable(scope["path"]) and is_storable(query)):
        raise HTTPException(400, "the URL holds NUL")
    encoding = Headers(scope=scope).get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise HTTPException(415, f"the body is sent as {encoding[:40]}; send it as it is")


def _bounded(receive: Receive, most: int, declared: int) -> Receive:
    """``receive`` for a body of at most so many bytes, all of them within BODY_S. It is looked at
    when the body is asked for, which is after the key."""
    received = 0
    deadline: float | None = None
    is_whole = False

    async def receive_bounded() -> Message:
        nonlocal received, deadline, is_whole
        if is_whole:
            return await receive()  # until the client goes away
        if declared > most:
            raise _too_long(declared, most)
        deadline = deadline or asyncio.get_running_loop().time() + BODY_S
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the body took more than {BODY_S:.0f} s") from None
        received += len(message.get("body", b""))
        if received > most:
            raise _too_long(None, most)
        is_whole = not message.get("more_body", False)
        return message

    return receive_bounded


def _paced(receive: Receive) -> Receive:
    """``receive`` for a body of any length that keeps coming."""
    in_span, span_ends = 0, 0.0
    is_whole = False

    async def receive_paced() -> Message:
        nonlocal in_span, span_ends, is_whole
        if is_whole:
            return await receive()
        now = asyncio.get_running_loop().time()
        if now >= span_ends or in_span >= MIN_UPLOAD_BYTES_PER_S * PACE_S:
            in_span, span_ends = 0, now + PACE_S
        try:
            async with asyncio.timeout_at(span_ends):
                message = await receive()
        except TimeoutError:
            rate = f"{MIN_UPLOAD_BYTES_PER_S >> 10} KiB/s"
            raise HTTPException(408, f"the body comes at less than {rate}") from None
        in_span += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        return message

    return receive_paced


def _too_long(declared: int | None, most: int) -> Exception:
    """The limits of the fields keep every valid JSON body below MAX_JSON_BYTES. A declared body
    that is somewhat longer must have an invalid field, and is answered as a 422."""
    reason = f"a body of more than {most} bytes"
    if most != MAX_JSON_BYTES or declared is None or declared > MAX_BODY_BYTES:
        return HTTPException(413, reason)
    return InvalidRequest("body", reason)
