"""Styles: templates around a user's prompt, each with a negative prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from serving.generation.prompts import ParsedPrompt, PromptPiece, Section, Syntax, parse

#: Where the user's prompt stands in a template.
PLACE = "{prompt}"
MAX_STYLES = 8


class Style(Struct, frozen=True):
    """A named template. ``version`` changes with the text, so that a receipt names the text."""

    name: str
    prompt: str = PLACE
    negative_prompt: str = ""
    version: int = 1

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return self.prompt.strip() in ("", PLACE) and not self.negative_prompt.strip()


def styled_prompt(prompt: str, styles: Sequence[Style], syntax: Syntax) -> tuple[Section, ...]:
    """Return the prompt within each style's template, the first style's innermost."""
    sections = parse(prompt, syntax).sections
    for style in styles:
        before, place, after = style.prompt.partition(PLACE)
        if not place:  # as in A1111
            before, after = "", f", {before}" if before.strip() else ""
        first = (*_phrases(before, style.name), *sections[0])
        sections = (first, *sections[1:])
        last = (*sections[-1], *_phrases(after, style.name))
        sections = (*sections[:-1], last)
    return sections


def styled_negative(
    prompt: str | None, styles: Sequence[Style], syntax: Syntax
) -> tuple[Section, ...] | None:
    """Return the styles' negative prompts and then the user's; None: there is no negative
    prompt."""
    texts = [style for style in styles if style.negative_prompt.strip()]
    if prompt is None and not texts:
        return None
    sections = parse(prompt or "", syntax).sections
    has_words = any(sections)
    added: list[PromptPiece] = []
    for index, style in enumerate(texts):
        is_last = index == len(texts) - 1 and not has_words
        text = style.negative_prompt if is_last else f"{style.negative_prompt}, "
        added += _phrases(text, style.name)
    return ((*added, *sections[0]), *sections[1:])


def _phrases(text: str, style: str) -> Iterator[PromptPiece]:
    """Yield what may be left out of a style by itself when the prompt is too long."""
    parsed: ParsedPrompt = parse(text)
    for section in parsed.sections:
        for piece in section:
            phrases = piece.text.split(",")
            for index, phrase in enumerate(phrases):
                whole = phrase if index == len(phrases) - 1 else f"{phrase},"
                if whole.strip():
                    yield PromptPiece(whole.strip(), piece.weight, style)
