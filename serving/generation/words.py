"""Search for whole words, such as trigger words, in a prompt of any language.

Not by regular expressions: Python's pattern cache would keep tenants' words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator


def split(text: str, words: Iterable[str]) -> list[tuple[str, bool]]:
    """Split ``text`` into (piece, is trigger word).

    Whole words match in any case, spelled as in ``words``; the longest wins. In scripts without
    spaces a word may stand anywhere.
    """
    text = unicodedata.normalize("NFC", text)
    pieces: list[tuple[str, bool]] = []
    position = 0
    for begin, end, word in _matches(text, words):
        if before := text[position:begin].strip():
            pieces.append((before, False))
        pieces.append((word, True))
        position = end
    if rest := text[position:].strip():
        pieces.append((rest, False))
    return pieces


def _matches(text: str, words: Iterable[str]) -> Iterator[tuple[int, int, str]]:
    """Yield (begin, end, word); matches do not overlap."""
    folded = _fold(text)
    spelled = {word: _fold(unicodedata.normalize("NFC", word)) for word in words if word}
    following = {word: _next(folded, spelled[word], 0) for word in spelled}
    position = 0
    while True:
        for word, begin in following.items():
            if 0 <= begin < position:
                following[word] = _next(folded, spelled[word], position)
        candidates = [
            (begin, -len(spelled[word]), word) for word, begin in following.items() if begin >= 0
        ]
        if not candidates:
            return
        begin, _, word = min(candidates)
        position = begin + len(spelled[word])
        yield begin, position, word


def _next(text: str, word: str, begin: int) -> int:
    """Return the next whole-word position, or -1."""
    while (begin := text.find(word, begin)) >= 0:
        end = begin + len(word)
        starts = begin == 0 or _is_boundary(text[begin - 1], text[begin])
        if starts and (end == len(text) or _is_boundary(text[end - 1], text[end])):
            return begin
        begin += 1
    return -1


def _is_boundary(before: str, after: str) -> bool:
    """Whether a word may end between two characters: always in scripts without spaces, and where
    the script changes, as at a Korean particle."""
    if unicodedata.category(after).startswith("M"):  # belongs to the letter before
        return False
    first, second = _script(before), _script(after)
    return not first or not second or first != second or first in _WITHOUT_SPACES


#: By the first words of Unicode's names; ideographs are named CJK.
_WITHOUT_SPACES = frozenset(
    {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE"}
)
#: Digits, underscores and marks belong to the word beside them.
_COMMON = "LATIN"
_SCRIPTS = _WITHOUT_SPACES | {
    "ARABIC", "ARMENIAN", "BENGALI", "CYRILLIC", "DEVANAGARI", "ETHIOPIC", "GEORGIAN", "GREEK",
    "GUJARATI", "GURMUKHI", "HANGUL", "HEBREW", "KANNADA", "MALAYALAM", "SINHALA", "TAMIL",
    "TELUGU",
}  # fmt: skip


def _script(character: str) -> str:
    """Return the script of a word's character, or ""."""
    if character == "_" or character.isdecimal():
        return _COMMON
    if not character.isalnum() and not unicodedata.category(character).startswith("M"):
        return ""
    name = unicodedata.name(character, "").partition(" ")[0].removesuffix("-COMPATIBILITY")
    return name if name in _SCRIPTS else _COMMON


def _fold(text: str) -> str:
    """Case-fold, keeping the length."""
    folded = text.casefold()
    if len(folded) == len(text):
        return folded
    return "".join(
        lower if len(lower := character.casefold()) == 1 else character for character in text
    )
