"""Applies the content policy to a request: its prompts before, its images after generation."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from msgspec import structs

from assets.principal import Principal
from serving.generation.choices import of_image
from serving.generation.contract import GenerationResult, GenerationTask, Safety
from serving.generation.policy import ContentPolicy, ImageChecks, Ruling, Subject, refused
from serving.generation.prompts import parse
from serving.generation.styles import styled_prompt

log = logging.getLogger(__name__)


class AuditLog(Protocol):
    def note(
        self, tenant_id: str, actor: str, act: str, subject: str, **details: object
    ) -> None: ...


class ContentGate:
    """``images``: which images are judged."""

    def __init__(
        self,
        policy: ContentPolicy | None = None,
        images: ImageChecks = "off",
        audit: AuditLog | None = None,
    ) -> None:
        self._policy = policy
        self._images = images
        self._audit = audit

    def judges_images(self, *, requested: bool) -> bool:
        wanted = self._images == "always" or (self._images == "requested" and requested)
        return wanted and self._policy is not None

    async def check_prompts(self, principal: Principal, task: GenerationTask) -> None:
        """Judge the prompts; negative prompts say what is not wanted.

        Raises:
            PolicyViolation: refused.
            PolicyUnavailable.
        """
        if self._policy is None:
            return
        subject = await asyncio.to_thread(_subject, principal, task)
        ruling = await self._policy.judge_prompt(subject)
        if not ruling.allowed:
            await self._note(principal, "policy.prompt", task.id, ruling)
            raise refused()

    async def screened(
        self, principal: Principal, task: GenerationTask, result: GenerationResult
    ) -> GenerationResult:
        """Return the result without the images that the policy refuses.

        Raises:
            PolicyUnavailable.
        """
        policy = self._policy
        if policy is None:
            return result
        subject = await asyncio.to_thread(_subject, principal, task)
        rulings = await asyncio.gather(
            *(policy.judge_image(subject, image) for image in result.images)
        )
        for index, ruling in enumerate(rulings):
            if not ruling.allowed:
                name = f"{task.id}/{index}"
                await self._note(principal, "policy.image", name, ruling)
        images = tuple(
            image if ruling.allowed else b""
            for image, ruling in zip(result.images, rulings, strict=True)
        )
        safety = tuple(Safety(not ruling.allowed, ruling.score) for ruling in rulings)
        return structs.replace(result, images=images, safety=safety)

    async def _note(self, principal: Principal, act: str, subject: str, ruling: Ruling) -> None:
        """The reason is for the operator: owners read their organisation's audit log."""
        log.warning("%s refuses %s: %s", act, subject, ruling.reason)
        if self._audit is not None:
            await asyncio.to_thread(
                self._audit.note,
                principal.tenant_id,
                principal.key_id,
                act,
                subject,
                score=ruling.score,
            )


def _subject(principal: Principal, task: GenerationTask) -> Subject:
    return Subject(tenant=principal.tenant_name, request_id=task.id, prompts=_prompts(task))


def _prompts(task: GenerationTask) -> tuple[str, ...]:
    """Every image's prompts: as written, without syntax, and within their styles."""
    found: dict[str, None] = {}
    for params in dict.fromkeys(of_image(task.params, seed) for seed in task.seeds):
        for text in dict.fromkeys((params.prompt, params.prompt_2 or params.prompt)):
            found |= {text: None, parse(text, params.syntax).text: None}
            if params.styles:
                sections = styled_prompt(text, params.styles, params.syntax)
                pieces = (piece.text for section in sections for piece in section)
                found[" ".join(pieces)] = None
    return tuple(text for text in found if text.strip())
