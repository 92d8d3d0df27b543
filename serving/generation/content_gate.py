"""Applies the content policy to a request: its prompts before, its images after generation."""

from __future__ import annotations

import asyncio
from typing import Protocol

from msgspec import structs

from assets.principal import Principal
from serving.generation.choices import of_image
from serving.generation.contract import GenerationResult, GenerationTask, Safety
from serving.generation.policy import ContentPolicy, ImageChecks, NoPolicy, Subject, refused
from serving.generation.prompts import parse


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
        self._policy = policy or NoPolicy()
        self._images = images
        self._audit = audit

    def judges_images(self, *, requested: bool) -> bool:
        return self._images == "always" or (self._images == "requested" and requested)

    async def check_prompts(self, principal: Principal, task: GenerationTask) -> None:
        """Judge the prompts; negative prompts say what is not wanted.

        Raises:
            PolicyViolation: refused.
            PolicyUnavailable.
        """
        ruling = await self._policy.judge_prompt(_subject(principal, task))
        if not ruling.allowed:
            error = refused(ruling)
            await self._note(principal, "policy.prompt", task.id, error.reason, ruling.score)
            raise error

    async def screened(
        self, principal: Principal, task: GenerationTask, result: GenerationResult
    ) -> GenerationResult:
        """Return the result without the images that the policy refuses.

        Raises:
            PolicyUnavailable.
        """
        subject = _subject(principal, task)
        rulings = await asyncio.gather(
            *(self._policy.judge_image(subject, image) for image in result.images)
        )
        for index, ruling in enumerate(rulings):
            if not ruling.allowed:
                name = f"{task.id}/{index}"
                await self._note(principal, "policy.image", name, ruling.reason, ruling.score)
        images = tuple(
            image if ruling.allowed else b""
            for image, ruling in zip(result.images, rulings, strict=True)
        )
        safety = tuple(Safety(not ruling.allowed, ruling.score) for ruling in rulings)
        return structs.replace(result, images=images, safety=safety)

    async def _note(
        self, principal: Principal, act: str, subject: str, reason: str, score: float | None
    ) -> None:
        if self._audit is not None:
            await asyncio.to_thread(
                self._audit.note,
                principal.tenant_id,
                principal.key_id,
                act,
                subject,
                reason=reason,
                score=score,
            )


def _subject(principal: Principal, task: GenerationTask) -> Subject:
    return Subject(tenant=principal.tenant_name, request_id=task.id, prompts=_prompts(task))


def _prompts(task: GenerationTask) -> tuple[str, ...]:
    """Every image's prompts: as written, and as the model reads them, without syntax."""
    found: dict[str, None] = {}
    for seed in task.seeds:
        params = of_image(task.params, seed)
        for text in (params.prompt, params.prompt_2):
            if text:
                found |= {text: None, parse(text, params.syntax).text: None}
    for style in task.params.styles:
        found |= {style.prompt: None, parse(style.prompt).text: None}
    return tuple(text for text in found if text.strip())
