"""A content policy behind an HTTP endpoint of the operator's.

It gets ``{"kind": "prompt" | "image", "tenant", "request_id", "prompts", "image_b64"?}`` and
answers ``{"allowed": bool, "score"?: number, "reason"?: text}``.
"""

from __future__ import annotations

import base64
import logging
from typing import Any

import httpx2
import msgspec

from serving.errors import PolicyUnavailable
from serving.generation.policy import Ruling, Subject

log = logging.getLogger(__name__)

_MAX_REASON_CHARS = 500


class PolicyCallback:
    """For one event loop; the endpoint is the operator's, so it is trusted."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._http = httpx2.AsyncClient(timeout=timeout_s, follow_redirects=False)

    async def judge_prompt(self, subject: Subject) -> Ruling:
        return await self._ask({"kind": "prompt", **msgspec.to_builtins(subject)})

    async def judge_image(self, subject: Subject, image: bytes) -> Ruling:
        encoded = base64.b64encode(image).decode()
        return await self._ask(
            {"kind": "image", **msgspec.to_builtins(subject), "image_b64": encoded}
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def _ask(self, question: dict[str, Any]) -> Ruling:
        try:
            answer = await self._http.post(self._url, json=question)
            answer.raise_for_status()
            ruling = msgspec.json.decode(answer.content, type=Ruling)
        except (httpx2.HTTPError, msgspec.DecodeError, msgspec.ValidationError) as error:
            log.error("the content policy at %s does not answer: %r", self._url, error)
            raise PolicyUnavailable(
                "the content policy does not answer, so nothing is generated; retry later"
            ) from None
        return Ruling(ruling.allowed, ruling.score, ruling.reason[:_MAX_REASON_CHARS])
