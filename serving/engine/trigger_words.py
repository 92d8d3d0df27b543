"""Search for trigger words in a prompt.

Not by regular expressions: Python caches hundreds of compiled patterns, and these would contain
the words of every tenant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def split(text: str, words: Iterable[str]) -> list[tuple[str, bool]]:
    """Split ``text`` at trigger words into (piece, is trigger word).

    Trigger words match as whole words in any case, and are returned as spelled in ``words``. The
    longest of several that begin at one position wins.
    """
    pieces: list[tuple[str, bool]] = []
    position = 0
    for begin, word in _matches(text, words):
        if before := text[position:begin].strip():
            pieces.append((before, False))
        pieces.append((word, True))
        position = begin + len(word)
    if rest := text[position:].strip():
        pieces.append((rest, False))
    return pieces


def _matches(text: str, words: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield the position and word of each match; matches do not overlap."""
    folded = _fold(text)
    following = {word: _next(folded, _fold(word), 0) for word in words if word}
    position = 0
    while True:
        for word, begin in following.items():
            if 0 <= begin < position:
                following[word] = _next(folded, _fold(word), position)
        candidates = [(begin, -len(word), word) for word, begin in following.items() if begin >= 0]
        if not candidates:
            return
        begin, _, word = min(candidates)
        yield begin, word
        position = begin + len(word)


def _next(text: str, word: str, begin: int) -> int:
    """Return the next position of ``word`` as a whole word, from ``begin`` on; -1 for none."""
    while (begin := text.find(word, begin)) >= 0:
        end = begin + len(word)
        starts = begin == 0 or not _is_word_character(text[begin - 1])
        if starts and (end == len(text) or not _is_word_character(text[end])):
            return begin
        begin += 1
    return -1


def _is_word_character(character: str) -> bool:
    return character.isalnum() or character == "_"


def _fold(text: str) -> str:
    """Return ``text`` case-folded, at its original length."""
    folded = text.casefold()
    if len(folded) == len(text):
        return folded
    return "".join(
        lower if len(lower := character.casefold()) == 1 else character for character in text
    )
