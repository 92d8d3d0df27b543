"""Maps exceptions to HTTP errors: {"code", "message", "request_id"}.

A 422 also has the list ``detail``; OctoAI's client cannot parse a string.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

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
    PolicyUnavailable,
    PolicyViolation,
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
    (PolicyViolation, 400, "policy_violation"),
    (PolicyUnavailable, 503, "policy_unavailable"),
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
    413: "too_large", 415: "unsupported_media_type", 416: "range_not_satisfiable", 431: "too_large",
}  # fmt: skip
#: Error bodies quote the request's texts and lists.
_MAX_MESSAGE, _MAX_DETAILS, _MAX_DETAIL, _MAX_LOC = 1_000, 20, 200, 64


class Detail(TypedDict):
    """An invalid field."""

    loc: list[str | int]
    msg: str
    type: str


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """What an error becomes on the wire."""

    status: int
    code: str
    message: str
    detail: Sequence[Detail] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, request_id: str) -> dict[str, object]:
        detail = {"detail": list(self.detail)} if self.detail else {}
        message = _cut(self.message, _MAX_MESSAGE)
        return {"code": self.code, "message": message, **detail, "request_id": request_id}

    def response(self, request_id: str) -> JSONResponse:
        return JSONResponse(self.body(request_id), self.status, self.headers)


def codes_of(status: int) -> tuple[str, ...]:
    """The codes of a status."""
    refused = {429: ("rate_limited",), 503: ("overloaded",)}.get(status, ())
    transport = (_BY_STATUS[status],) if status in _BY_STATUS else ()
    tabled = (code for _, with_status, code in TABLE if with_status == status)
    return tuple(dict.fromkeys([*refused, *tabled, *transport]))


def describe(error: Exception) -> ErrorAnswer:
    if isinstance(error, Refused):
        code = "rate_limited" if error.status == 429 else "overloaded"
        headers = {"Retry-After": str(math.ceil(error.retry_after_s))}
        return ErrorAnswer(error.status, code, str(error), headers=headers)
    if isinstance(error, RequestValidationError):
        detail = [
            _detail(fault["loc"], fault["msg"], fault["type"])
            for fault in error.errors()[:_MAX_DETAILS]
        ]
        message = f"{'.'.join(map(str, detail[0]['loc']))}: {detail[0]['msg']}"
        return ErrorAnswer(422, "invalid", message, detail)
    if isinstance(error, HTTPException):
        code = _BY_STATUS.get(error.status_code, "error")
        return ErrorAnswer(
            error.status_code, code, str(error.detail), headers=dict(error.headers or {})
        )
    for kind, status, code in TABLE:
        if isinstance(error, kind):
            return _tabled(error, status, code)
    log.error("unexpected error", exc_info=error)
    message = "internal error; the server log has the details under this request id"
    return ErrorAnswer(500, "internal", message)


def _tabled(error: Exception, status: int, code: str) -> ErrorAnswer:
    message = "the database is busy" if isinstance(error, OperationalError) else str(error)
    detail: list[Detail] = []
    if status == 422:
        name = str(getattr(error, "field", None) or getattr(error, "reference", "body"))
        detail = [_detail(["body", name], message, code)]
    headers = {"Retry-After": "1"} if status in (409, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return ErrorAnswer(status, code, message, detail, headers)


def install(app: FastAPI) -> None:
    async def respond(request: Request, error: Exception) -> JSONResponse:
        answer = describe(error)
        if answer.status == 405:
            answer = replace(
                answer, headers={**answer.headers, "Allow": ", ".join(_allowed(request))}
            )
        return answer.response(_request_id(request.scope))

    for kind in (RequestValidationError, HTTPException, Refused, *(kind for kind, _, _ in TABLE)):
        app.add_exception_handler(kind, respond)


def _detail(loc: Sequence[str | int], message: str, code: str) -> Detail:
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
            response = describe(error).response(_request_id(scope))
            await response(scope, receive, send)


def _request_id(scope: Scope) -> str:
    return str(scope.get("request_id", ""))
