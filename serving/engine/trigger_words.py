"""Search for trigger words in a prompt.

Not by regular expressions: Python's pattern cache would keep tenants' words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def split(text: str, words: Iterable[str]) -> list[tuple[str, bool]]:
    """Split ``text`` into (piece, is trigger word).

    Whole words match in any case, spelled as in ``words``; the longest wins.
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
    """Yield (position, word); matches do not overlap."""
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
    """Return the next whole-word position, or -1."""
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
    """Case-fold, keeping the length."""
    folded = text.casefold()
    if len(folded) == len(text):
        return folded
    return "".join(
        lower if len(lower := character.casefold()) == 1 else character for character in text
    )
