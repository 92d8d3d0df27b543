"""The prompt language: a pure parser of AUTOMATIC1111's syntax, which OctoAI documented in part.

``(a:1.2)`` weighs, ``(a)`` is 1.1 and ``[a]`` 1 / 1.1, brackets multiply, a backslash takes a
character literally, ``BREAK`` starts a new chunk, ``<lora:NAME:0.8>`` adds a LoRA,
``embedding:NAME`` (ComfyUI) or ``<embed:NAME>`` (SwarmUI) a textual inversion. NAME is a reference
such as ``owner:name``. All other syntax is text, with a warning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Syntax = Literal["weighted", "plain"]

_FACTORS = {"(": 1.1, "[": 1 / 1.1}
MAX_PIECE_WEIGHT = 10.0
MAX_REFERENCE_CHARS = 128

_MAX_OPEN = 64
_SHOWN_CHARS = 60
_MAX_WARNINGS = 8

#: No nested and no unbounded quantifiers, which bounds the backtracking. Python caches no pattern
#: of a tenant's.
_NETWORK = re.compile(r"<(lora|lyco|embed|hypernet):([^<>\n]{1,300})>")
_EMBEDDING = re.compile(r"\bembedding:([\w.\-]+(?::(?=[\d.\-]{0,64}[^\W\d])[\w.\-]+)?(?:@\d+)?)")
_WEIGHT = re.compile(r":\s{0,8}([+-]?(?:\d{1,6}(?:\.\d{0,8})?|\.\d{1,8}))\s{0,8}\)")
_BREAK = re.compile(r"\bBREAK\b")
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*")
_ESCAPED = frozenset("()[]{}<>|\\")

#: Read as text: (pattern, advice). The first two as a whole.
_EDITED = re.compile(r"\[[^\[\]|\n]{0,500}:\s{0,8}\d{0,6}\.?\d{1,8}\s{0,8}\]")
_ALTERNATING = re.compile(r"\[[^\[\]\n]{0,500}\|[^\[\]\n]{0,500}\]")
_UNSUPPORTED: tuple[tuple[re.Pattern[str], str], ...] = (
    (_EDITED, "prompt editing is not supported"),
    (_ALTERNATING, "alternating words are not supported"),
    (re.compile(r"\{[^{}\n]{0,500}\|[^{}\n]{0,500}\}"), "set dynamic_prompts for random choices"),
    (re.compile(r"\b__[\w/\-]{1,100}__\b"), "set dynamic_prompts and wildcards"),
    (
        re.compile(r"\([^()\n]{1,500}\)(?:\d{0,6}\.\d{1,8}|[+-]{1,8})(?=[\s,.]|$)"),
        "write a weight as (word:1.2)",
    ),
    (re.compile(r"\bAND\b(?=[^,.]{0,200}:\d)"), "prompt composition is not supported"),
)


class PromptPiece(NamedTuple):
    """Text with one weight. ``style``: the style that it comes from; empty: the user's prompt."""

    text: str
    weight: float = 1.0
    style: str = ""


class LoraTag(NamedTuple):
    """``<lora:NAME:TEXT_WEIGHT:UNET_WEIGHT>``; the second number defaults to the first."""

    reference: str
    weight: float
    text_weight: float


#: Pieces between two BREAKs.
Section = tuple[PromptPiece, ...]


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """``inversions``: references, which stand as words in the pieces, too."""

    sections: tuple[Section, ...]
    loras: tuple[LoraTag, ...] = ()
    inversions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    #: The words as they stand, without syntax.
    text: str = ""


def parse(prompt: str, syntax: Syntax = "weighted") -> ParsedPrompt:
    """Parse a prompt. Any text is valid; what is not understood is a warning."""
    if syntax == "plain":
        return ParsedPrompt((_section([PromptPiece(prompt)]),), text=prompt)
    return _Parser(prompt).parse()


class _Span(NamedTuple):
    """A bracket's items, from ``begin`` to before ``end``."""

    begin: int
    end: int
    factor: float


class _Parser:
    """One pass over the prompt; then the weights of brackets, known once they close, are applied.

    As in A1111, round and square brackets are paired apart and may cross.
    """

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        #: Texts, and None for a BREAK.
        self._items: list[str | None] = []
        self._spans: list[_Span] = []
        self._open: dict[str, list[int]] = {"(": [], "[": []}
        self._loras: dict[str, LoraTag] = {}
        self._inversions: dict[str, None] = {}
        self._warnings: dict[str, None] = {}

    def parse(self) -> ParsedPrompt:
        for pattern, advice in _UNSUPPORTED:
            for match in pattern.finditer(self._prompt):
                self._warn(match[0], f"is read as text: {advice}")
        position = 0
        while position < len(self._prompt):
            position = self._step(position)
        for bracket in self._open:  # as in A1111, they end with the prompt
            while self._close(bracket):
                pass
        return ParsedPrompt(
            tuple(_section(pieces) for pieces in self._weighted()),
            tuple(self._loras.values()),
            tuple(self._inversions),
            tuple(self._warnings)[:_MAX_WARNINGS],
            "".join(" " if item is None else item for item in self._items),
        )

    def _step(self, at: int) -> int:
        """Read one item; return the position behind it."""
        prompt, character = self._prompt, self._prompt[at]
        match character:
            case "\\":
                following = prompt[at + 1 : at + 2]
                if following in _ESCAPED:
                    self._items.append(following)
                    return at + 2
                return at + 1  # as in A1111, which drops it
            case "(" | "[":
                if literal := _EDITED.match(prompt, at) or _ALTERNATING.match(prompt, at):
                    self._items.append(literal[0])
                    return literal.end()
                if len(self._open[character]) < _MAX_OPEN:
                    self._open[character].append(len(self._items))
                    return at + 1
                self._warnings[f"brackets within {_MAX_OPEN} others are read as text"] = None
            case ":" if weight := _WEIGHT.match(prompt, at):
                if self._close("(", float(weight[1])):
                    return weight.end()
            case ")" if self._close("("):
                return at + 1
            case "]" if self._close("["):
                return at + 1
            case "<" if tag := _NETWORK.match(prompt, at):
                self._network(tag)
                return tag.end()
            case "e" if reference := _EMBEDDING.match(prompt, at):
                name = reference[1].rstrip(".-")
                if self._inversion(name):
                    return reference.start(1) + len(name)
            case "B" if broken := _BREAK.match(prompt, at):
                self._items.append(None)
                return broken.end()
        self._items.append(character)
        return at + 1

    def _close(self, bracket: str, weight: float | None = None) -> bool:
        if not self._open[bracket]:
            return False
        factor = _FACTORS[bracket] if weight is None else weight
        self._spans.append(_Span(self._open[bracket].pop(), len(self._items), factor))
        return True

    def _network(self, tag: re.Match[str]) -> None:
        kind, inside = tag[1], tag[2]
        match kind:
            case "lora" | "lyco":
                lora = _lora(inside)
                if lora is None:
                    self._warn(tag[0], "is left out: write <lora:NAME:0.8>")
                elif lora.reference in self._loras:
                    self._warn(tag[0], "is left out: this LoRA stands in the prompt already")
                else:
                    self._loras[lora.reference] = lora
            case "embed":
                if not self._inversion(inside.strip()):
                    self._warn(tag[0], "is left out: the name is too long")
            case _:
                self._warn(tag[0], "is left out: hypernetworks are not supported")

    def _inversion(self, reference: str) -> bool:
        if not 0 < len(reference) <= MAX_REFERENCE_CHARS:
            return False
        self._inversions[reference] = None
        self._items.append(f" {reference} ")
        return True

    def _warn(self, shown: str, reason: str) -> None:
        short = shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "…"
        self._warnings[f"{short} {reason}"] = None

    def _weighted(self) -> Iterator[list[PromptPiece]]:
        """Yield each section's pieces; neighbours of one weight are merged, as in A1111."""
        begins: dict[int, list[int]] = {}
        ends: dict[int, list[int]] = {}
        for index, span in enumerate(self._spans):
            begins.setdefault(span.begin, []).append(index)
            ends.setdefault(span.end, []).append(index)
        active: dict[int, float] = {}
        weight = 1.0
        pieces: list[tuple[list[str], float]] = []
        for position, item in enumerate(self._items):
            if position in begins or position in ends:
                for index in begins.get(position, ()):
                    active[index] = self._spans[index].factor
                for index in ends.get(position, ()):
                    active.pop(index, None)
                weight = self._bounded(math.prod(active.values(), start=1.0))
            if item is None:
                yield [PromptPiece("".join(texts), each) for texts, each in pieces]
                pieces = []
            elif pieces and pieces[-1][1] == weight:
                pieces[-1][0].append(item)
            else:
                pieces.append(([item], weight))
        yield [PromptPiece("".join(texts), each) for texts, each in pieces]

    def _bounded(self, weight: float) -> float:
        bounded = max(-MAX_PIECE_WEIGHT, min(MAX_PIECE_WEIGHT, weight))
        if bounded != weight:
            self._warnings[f"weights beyond {MAX_PIECE_WEIGHT:g} are lowered to it"] = None
        return bounded


def _section(pieces: list[PromptPiece]) -> Section:
    stripped = (piece._replace(text=piece.text.strip()) for piece in pieces)
    return tuple(piece for piece in stripped if piece.text)


def _lora(inside: str) -> LoraTag | None:
    """Read ``NAME[:TEXT_WEIGHT[:UNET_WEIGHT]]``; also ``te=`` and ``unet=``, as A1111."""
    parts = inside.split(":")
    named: dict[str, float] = {}
    while len(parts) > 1 and "=" in parts[-1]:
        name, _, value = parts.pop().partition("=")
        if _NUMBER.fullmatch(value) is None:
            return None
        named[name.strip()] = float(value)
    numbers: list[float] = []
    while len(parts) > 1 and len(numbers) < 2 and _NUMBER.fullmatch(parts[-1]):
        numbers.insert(0, float(parts.pop()))
    reference = ":".join(parts).strip()
    if not 0 < len(reference) <= MAX_REFERENCE_CHARS or not named.keys() <= {"te", "unet"}:
        return None
    text_weight = named.get("te", numbers[0] if numbers else 1.0)
    weight = named.get("unet", numbers[1] if len(numbers) > 1 else text_weight)
    return LoraTag(reference, weight, text_weight)
