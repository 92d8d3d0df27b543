"""Maps exceptions to HTTP errors: {"code", "message", "request_id"}.

A 422 also has the list ``detail``; OctoAI's client cannot parse a string.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assets.errors import (
    AssetNotFound,
    AssetNotReady,
    BadSignature,
    Changed,
    FetchRefused,
    Forbidden,
    IngestRejected,
    InvalidAsset,
    NameTaken,
    QuotaExceeded,
    StoreError,
    TooLarge,
)
from orchestrator.errors import TierError
from serving.errors import (
    BudgetExceeded,
    Busy,
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    InternalError,
    InvalidRequest,
    NotFinite,
    NotFound,
    NotSupported,
    OutOfMemory,
    Quarantined,
    Refused,
    ReplicaLost,
    Unauthenticated,
)

log = logging.getLogger(__name__)

#: (exception class, status, code); the first match wins.
TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (NotSupported, 501, "not_served"),
    (Unauthenticated, 401, "unauthenticated"),
    (BadSignature, 403, "bad_signature"),
    (Forbidden, 403, "forbidden"),
    (BudgetExceeded, 402, "budget_exceeded"),
    (QuotaExceeded, 403, "quota_exceeded"),
    (AssetNotFound, 404, "not_found"),
    (NotFound, 404, "not_found"),
    (Busy, 409, "busy"),
    (AssetNotReady, 422, "asset_not_ready"),
    (InvalidAsset, 422, "invalid"),
    (InvalidRequest, 422, "invalid"),
    (NameTaken, 422, "name_taken"),
    (Changed, 409, "changed"),
    (FetchRefused, 422, "invalid"),
    (IngestRejected, 422, "rejected"),
    (TooLarge, 413, "too_large"),
    (DeadlineExceeded, 504, "deadline_exceeded"),
    (Cancelled, 499, "cancelled"),
    (NotFinite, 422, "not_finite"),
    (Quarantined, 422, "quarantined"),
    (GenerationFailed, 500, "drawing_failed"),  # a wire name of the first release
    (OutOfMemory, 503, "out_of_memory"),
    (ReplicaLost, 503, "replica_lost"),
    (TierError, 503, "out_of_room"),
    (InternalError, 500, "internal"),
    (StoreError, 503, "store_unavailable"),
    (OperationalError, 503, "database_unavailable"),
)
_BY_STATUS = {
    400: "bad_request", 404: "not_found", 405: "method_not_allowed", 408: "too_slow",
    413: "too_large", 415: "unsupported_media_type", 431: "too_large",
}  # fmt: skip
#: Error bodies quote the request's texts and lists.
_MAX_MESSAGE, _MAX_DETAILS, _MAX_DETAIL, _MAX_LOC = 1_000, 20, 200, 64


def describe(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return an error's status, body (without ``request_id``) and headers."""
    status, body, headers = _describe(error)
    return status, {**body, "message": _cut(body["message"], _MAX_MESSAGE)}, headers


def _describe(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    body: dict[str, Any]
    if isinstance(error, Refused):
        code = "rate_limited" if error.status == 429 else "overloaded"
        headers = {"Retry-After": str(math.ceil(error.retry_after_s))}
        return error.status, {"code": code, "message": str(error)}, headers
    if isinstance(error, RequestValidationError):
        detail = [
            _detail(fault["loc"], fault["msg"], fault["type"])
            for fault in error.errors()[:_MAX_DETAILS]
        ]
        message = f"{'.'.join(map(str, detail[0]['loc']))}: {detail[0]['msg']}"
        return 422, {"code": "invalid", "message": message, "detail": detail}, {}
    if isinstance(error, HTTPException):
        code = _BY_STATUS.get(error.status_code, "error")
        body = {"code": code, "message": str(error.detail)}
        return error.status_code, body, dict(error.headers or {})
    for kind, status, code in TABLE:
        if isinstance(error, kind):
            message = str(error) if kind is not OperationalError else "the database is busy"
            body = {"code": code, "message": message}
            if status == 422:
                field = getattr(error, "field", None) or getattr(error, "reference", "body")
                body["detail"] = [_detail(["body", field], message, code)]
            headers = {"Retry-After": "1"} if status in (409, 503) else {}
            if status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            return status, body, headers
    log.error("unexpected error", exc_info=error)
    message = "internal error; the server log has the details under this request id"
    return 500, {"code": "internal", "message": message}, {}


def install(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> JSONResponse:
        status, body, headers = describe(error)
        if status == 405:
            headers["Allow"] = ", ".join(_allowed(request))
        return _response(request, status, body, headers)

    for kind in (RequestValidationError, HTTPException, Refused, *(kind for kind, _, _ in TABLE)):
        app.add_exception_handler(kind, answer)


def _detail(loc: Sequence[Any], message: str, code: str) -> dict[str, Any]:
    cut_loc = [_cut(part, _MAX_LOC) if isinstance(part, str) else part for part in loc]
    return {"loc": cut_loc, "msg": _cut(message, _MAX_DETAIL), "type": code}


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _allowed(request: Request) -> list[str]:
    """Each route knows only its own methods."""
    methods: set[str] = set()
    for included in request.app.routes:
        router = getattr(included, "original_router", None)
        for route in router.routes if router else ():
            if route.path_regex.match(request.scope["path"]):
                methods |= route.methods or set()
    return sorted(methods)


class ErrorMiddleware:
    """Middleware that answers unexpected errors.

    A catch-all handler would run outside all middleware, without request id and log fields.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def send_and_watch(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_watch)
        except Exception as error:
            if scope["type"] != "http":
                raise
            if has_begun:
                log.error("failed while sending the response", exc_info=error)
                raise
            status, body, headers = describe(error)
            await _response(Request(scope), status, body, headers)(scope, receive, send)


def _response(
    request: Request, status: int, body: dict[str, Any], headers: dict[str, str]
) -> JSONResponse:
    request_id = request.scope.get("request_id", "")
    return JSONResponse({**body, "request_id": request_id}, status, headers)
