"""Trigger words in a prompt: where they stand.

Not a regular expression: Python keeps hundreds of the patterns that it has compiled, and these
words are every tenant's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def split(text: str, words: Iterable[str]) -> list[tuple[str, bool]]:
    """The text cut at trigger words (whole words, any case): each piece, and whether it is one.
    A trigger word is given as ``words`` has it; of those that begin at one place the longest."""
    pieces: list[tuple[str, bool]] = []
    position = 0
    for begin, word in _found(text, words):
        if before := text[position:begin].strip():
            pieces.append((before, False))
        pieces.append((word, True))
        position = begin + len(word)
    if rest := text[position:].strip():
        pieces.append((rest, False))
    return pieces


def _found(text: str, words: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Each trigger word and where it begins; none overlaps the one before."""
    folded = _fold(text)
    following = {word: _next(folded, _fold(word), 0) for word in words if word}
    position = 0
    while True:
        for word, begin in following.items():
            if 0 <= begin < position:
                following[word] = _next(folded, _fold(word), position)
        there = [(begin, -len(word), word) for word, begin in following.items() if begin >= 0]
        if not there:
            return
        begin, _, word = min(there)
        yield begin, word
        position = begin + len(word)


def _next(text: str, word: str, begin: int) -> int:
    """Where ``word`` next stands as a whole word; -1 for nowhere."""
    while (begin := text.find(word, begin)) >= 0:
        end = begin + len(word)
        starts = begin == 0 or not _is_of_a_word(text[begin - 1])
        if starts and (end == len(text) or not _is_of_a_word(text[end])):
            return begin
        begin += 1
    return -1


def _is_of_a_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _fold(text: str) -> str:
    """Without case, and as long as ``text``."""
    folded = text.casefold()
    if len(folded) == len(text):
        return folded
    return "".join(one if len(one := each.casefold()) == 1 else each for each in text)
