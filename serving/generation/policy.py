"""The operator's content policy: a hook for prompts and one for finished images.

Without a policy everything is allowed. A refused prompt is an error before anything is reserved; a
refused image is withheld and not charged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct

from serving.errors import PolicyViolation
from serving.generation.words import split

#: Of images: never, where the request has ``enable_safety``, or always.
ImageChecks = Literal["off", "requested", "always"]


class Ruling(Struct, frozen=True):
    """``score``: how objectionable, from 0 to 1, if the policy has one; ``reason``: for the
    operator's audit log."""

    allowed: bool
    score: float | None = None
    reason: str = ""


ALLOWED = Ruling(True)


class Subject(Struct, frozen=True, kw_only=True):
    """What a policy judges: the tenant's name, the request and its prompts as written."""

    tenant: str
    request_id: str
    prompts: tuple[str, ...]


class ContentPolicy(Protocol):
    """Errors of a policy mean that nothing is allowed: it raises PolicyUnavailable."""

    async def judge_prompt(self, subject: Subject) -> Ruling: ...

    async def judge_image(self, subject: Subject, image: bytes) -> Ruling:
        """``image`` is a file as it would be delivered."""


class NoPolicy:
    async def judge_prompt(self, subject: Subject) -> Ruling:
        return ALLOWED

    async def judge_image(self, subject: Subject, image: bytes) -> Ruling:
        return ALLOWED


class WordList(NoPolicy):
    """Refuses prompts that have one of these words, in any case."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words

    @classmethod
    def from_file(cls, path: Path) -> WordList:
        """Read one word or phrase a line; ``#`` begins a comment.

        Raises:
            OSError, UnicodeDecodeError.
        """
        lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
        return cls([line for line in lines if line])

    async def judge_prompt(self, subject: Subject) -> Ruling:
        for prompt in subject.prompts:
            for piece, is_word in split(prompt, self._words):
                if is_word:
                    return Ruling(False, reason=f"the word {piece!r}")
        return ALLOWED


class Policies:
    """Several policies as one: the first that refuses decides; else the highest score is kept."""

    def __init__(self, policies: Sequence[ContentPolicy]) -> None:
        self._policies = policies

    async def judge_prompt(self, subject: Subject) -> Ruling:
        return await _strictest(policy.judge_prompt(subject) for policy in self._policies)

    async def judge_image(self, subject: Subject, image: bytes) -> Ruling:
        return await _strictest(policy.judge_image(subject, image) for policy in self._policies)


async def _strictest(rulings: Iterable[Awaitable[Ruling]]) -> Ruling:
    scores: list[float] = []
    for pending in rulings:
        ruling = await pending
        if not ruling.allowed:
            return ruling
        if ruling.score is not None:
            scores.append(ruling.score)
    return Ruling(True, max(scores, default=None))


def refused(ruling: Ruling) -> PolicyViolation:
    """Return the error of a refused prompt, in the words that OctoAI's clients know."""
    return PolicyViolation("This request violates our Acceptable Use Policy.", ruling.reason)
