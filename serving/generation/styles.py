"""Styles: templates around a user's prompt, each with a negative prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from serving.generation.prompts import MAX_PIECE_WEIGHT, PromptPiece, Section, Syntax, parse

#: Where the user's prompt stands in a template.
PLACE = "{prompt}"
MAX_STYLES = 8
#: Stands for the prompt in a template while it is parsed; a private character.
_MARK = "\ue000"


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
        template = style.prompt.replace(_MARK, "")
        if PLACE not in template:  # as in A1111
            template = f"{PLACE}, {template}" if template.strip() else PLACE
        sections = _within(sections, parse(template.replace(PLACE, _MARK, 1)).sections, style.name)
    return sections


def _within(
    sections: Sequence[Section], template: Sequence[Section], style: str
) -> tuple[Section, ...]:
    """Put ``sections`` at the mark of a parsed template; its weight there multiplies theirs."""
    made: list[Section] = []
    has_mark = False
    for section in template:
        before: list[PromptPiece] = []
        after: list[PromptPiece] | None = None
        weight = 1.0
        for piece in section:
            head, mark, tail = piece.text.partition(_MARK)
            if mark:
                before += _phrases(head, piece.weight, style)
                after, weight = list(_phrases(tail, piece.weight, style)), piece.weight
            else:
                (before if after is None else after).extend(
                    _phrases(piece.text, piece.weight, style)
                )
        if after is None:
            made.append(tuple(before))
            continue
        has_mark = True
        placed = [tuple(_weighed(piece, weight) for piece in each) for each in sections]
        placed[0] = (*before, *placed[0])
        placed[-1] = (*placed[-1], *after)
        made += placed
    # A mark within a tag is gone with it; the prompt never is.
    return tuple(made) if has_mark else (*made, *sections)


def _weighed(piece: PromptPiece, factor: float) -> PromptPiece:
    weight = max(-MAX_PIECE_WEIGHT, min(MAX_PIECE_WEIGHT, piece.weight * factor))
    return piece._replace(weight=weight)


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
        for section in parse(text).sections:
            for piece in section:
                added += _phrases(piece.text, piece.weight, style.name)
    return ((*added, *sections[0]), *sections[1:])


def _phrases(text: str, weight: float, style: str) -> Iterator[PromptPiece]:
    """Yield what may be left out of a style by itself when the prompt is too long."""
    phrases = text.split(",")
    for index, phrase in enumerate(phrases):
        whole = phrase if index == len(phrases) - 1 else f"{phrase},"
        if whole.strip():
            yield PromptPiece(whole.strip(), weight, style)
