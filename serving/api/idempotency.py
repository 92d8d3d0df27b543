"""``Idempotency-Key`` on the wire: the header, acceptance, the wait."""

from __future__ import annotations

import asyncio
import hashlib

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from assets.principal import Principal
from serving.api.connected import run_while_connected
from serving.api.context import Context
from serving.api.errors import describe
from serving.errors import DeadlineExceeded, InvalidRequest
from serving.generation.contract import GenerationRequest
from serving.jobs.store import Job

HEADER = "Idempotency-Key"
_MAX_HEADER_CHARS = 255
#: Without effect on the pixels. Older clients always send the last, which earlier builds ignored.
_NO_CONTENT = {"priority", "gpu", "enable_safety"}
#: Fields since the first release: with their default they do not change the digest of a body.
_LATER = (
    "schedule",
    "style_preset",
    "styles",
    "clip_skip",
    "prompt_syntax",
    "asset_hints",
    "dynamic_prompts",
    "wildcards",
    "metadata",
)


def key_of(request: Request) -> str | None:
    """Return the key, if any. Raises InvalidRequest if malformed."""
    return text_header(request, HEADER)


def text_header(request: Request, name: str) -> str | None:
    """Return a header, if any. Raises InvalidRequest: not as the document describes it."""
    value = request.headers.get(name)
    if value is not None and not (
        0 < len(value) <= _MAX_HEADER_CHARS and value.isascii() and value.isprintable()
    ):
        raise InvalidRequest(
            name, f"it must be 1 to {_MAX_HEADER_CHARS} printable ASCII characters"
        )
    return value


async def accept(
    context: Context,
    principal: Principal,
    request: GenerationRequest,
    body: BaseModel,
    key: str | None,
) -> Job:
    """Return the request's job, as :meth:`serving.jobs.idempotency.JobAcceptance.accept`.

    ``body`` is the request on the wire: with one key it must be the same each time.
    """
    digest = None
    if key is not None:
        fields = type(body).model_fields
        unset = {"style_preset"} if getattr(body, "style_preset", None) == "base" else set()
        unset |= {
            name
            for name in _LATER
            if name in fields
            and getattr(body, name) == fields[name].get_default(call_default_factory=True)
        }
        text = body.model_dump_json(exclude=_NO_CONTENT | unset)
        digest = hashlib.sha256(text.encode()).hexdigest()
    return await context.jobs.acceptance.accept(principal, request, digest, key)


async def finished(context: Context, request: Request, job: Job) -> Job:
    """Wait for a job while the client is connected.

    Raises:
        DeadlineExceeded: after the platform's timeout; the job continues.
    """
    timeout_s = context.platform.timeout_s

    async def wait() -> Job:
        try:
            async with asyncio.timeout(timeout_s):
                return await context.jobs.watch.finished(job.id)
        except TimeoutError:
            raise DeadlineExceeded(
                f"not finished within {timeout_s:.0f} s; the job continues: retry with the same key"
            ) from None

    return await run_while_connected(request, wait())


def error_of(job: Job) -> JSONResponse:
    """Return the response of a job that failed or was cancelled."""
    error = job.error
    assert error is not None
    if error.failure is None:
        return JSONResponse(error.body, error.status)
    return describe(error.failure.error()).response(job.id)
