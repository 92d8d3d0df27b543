"""Chunks of a prompt's tokens, as AUTOMATIC1111 makes them: 75 each, ending at a comma if one is
near."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from serving.engine.vocabulary import MAX_TOKENS

CHUNK_TOKENS = MAX_TOKENS - 2
MAX_CHUNKS = 8
COMMA = 267
#: Tokens after the last comma that move to the next chunk.
_COMMA_REACH = 20


class Token(NamedTuple):
    """``vector``: the trigger word and the index of the inversion's vector that replaces it."""

    id: int
    weight: float = 1.0
    vector: tuple[str, int] | None = None


class Unit(NamedTuple):
    """Tokens of one chunk: an inversion's, or one token. ``phrase`` numbers a style's phrases."""

    tokens: tuple[Token, ...]
    style: str = ""
    phrase: int = -1


Chunk = tuple[Token, ...]


class Fitted(NamedTuple):
    """The chunks, the number of the user's tokens that had no room, and shortened styles."""

    chunks: tuple[Chunk, ...]
    dropped: int = 0
    shortened: tuple[str, ...] = ()


def fit(sections: Sequence[Sequence[Unit]], limit: int = MAX_CHUNKS) -> Fitted:
    """Pack units into at most ``limit`` chunks. Styles give way before the user's words."""
    chunks = _pack(sections)
    if len(chunks) <= limit:
        return Fitted(tuple(chunks))
    phrases = sorted({unit.phrase for section in sections for unit in section if unit.phrase >= 0})

    def with_first(count: int) -> list[Chunk]:
        """Pack with a style's first phrases alone."""
        left_out = set(phrases[count:])
        return _pack([[u for u in section if u.phrase not in left_out] for section in sections])

    # The number of chunks grows with the phrases: those that have room, by bisection.
    kept = max(bisect_right(range(len(phrases)), limit, key=lambda n: len(with_first(n))) - 1, 0)
    chunks = with_first(kept)
    left_out = set(phrases[kept:])
    shortened = {u.style: None for section in sections for u in section if u.phrase in left_out}
    dropped = sum(len(chunk) for chunk in chunks[limit:])
    return Fitted(tuple(chunks[:limit]), dropped, tuple(shortened))


def _pack(sections: Iterable[Sequence[Unit]]) -> list[Chunk]:
    packer = _Packer()
    for index, section in enumerate(sections):
        if index:
            packer.end_chunk()
        for unit in section:
            for begin in range(0, len(unit.tokens), CHUNK_TOKENS):
                packer.add(unit.tokens[begin : begin + CHUNK_TOKENS])
    if packer.current or not packer.chunks:
        packer.end_chunk()
    return packer.chunks


class _Packer:
    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.current: list[tuple[Token, ...]] = []
        self._size = 0
        #: Units up to and with the last comma.
        self._comma = 0

    def add(self, unit: tuple[Token, ...]) -> None:
        is_comma = unit[0].id == COMMA and unit[0].vector is None
        if self._size == CHUNK_TOKENS:
            behind = self.current[self._comma :] if self._comma and not is_comma else []
            size = sum(map(len, behind))
            if size >= _COMMA_REACH:
                behind, size = [], 0
            self.current = self.current[: len(self.current) - len(behind)]
            self.end_chunk()
            self.current, self._size = behind, size
        if self._size + len(unit) > CHUNK_TOKENS:
            self.end_chunk()
        self.current.append(unit)
        self._size += len(unit)
        if is_comma:
            self._comma = len(self.current)

    def end_chunk(self) -> None:
        self.chunks.append(tuple(token for unit in self.current for token in unit))
        self.current, self._size, self._comma = [], 0, 0
