"""Chunks of a prompt's tokens, as AUTOMATIC1111 makes them: 75 each, ending at a comma if one is
near."""

from __future__ import annotations

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
    kept = [list(section) for section in sections]
    shortened: dict[str, None] = {}
    while len(chunks := _pack(kept)) > limit:
        last = max((unit.phrase for section in kept for unit in section), default=-1)
        if last < 0:
            break
        for section in kept:
            shortened.update({unit.style: None for unit in section if unit.phrase == last})
            section[:] = [unit for unit in section if unit.phrase != last]
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
