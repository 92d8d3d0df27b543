"""The operator's content policy: a hook for prompts and one for finished images.

Without a policy everything is allowed. A refused prompt is an error before anything is reserved; a
refused image is withheld and not charged.
"""

from __future__ import annotations

import unicodedata
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
        self._words = [" ".join(word.split()) for word in words]
        self._plain = {f" {_letters(word)} ": word for word in self._words if _letters(word)}

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
            found = next((word for word, is_word in self._split(prompt) if is_word), None)
            letters = f" {_letters(prompt)} "
            found = found or next((w for key, w in self._plain.items() if key in letters), None)
            if found is not None:
                return Ruling(False, reason=f"the word {found!r}")
        return ALLOWED

    def _split(self, prompt: str) -> Sequence[tuple[str, bool]]:
        return split(" ".join(prompt.split()), self._words)


def _letters(text: str) -> str:
    """Return the runs of letters, without accents, with a space between: CLIP, too, takes digits,
    signs and line breaks for the end of a word."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    kept = (character for character in plain if unicodedata.category(character)[0] != "M")
    return " ".join("".join(each if each.isalpha() else " " for each in kept).split())


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


def refused() -> PolicyViolation:
    """Return the error of a refused prompt, in the words that OctoAI's clients know."""
    return PolicyViolation("This request violates our Acceptable Use Policy.")
