"""Random choices in prompts, by each image's seed: ``{red|green}`` and wildcards, ``__color__``.

Choices may be nested; a backslash escapes a brace. The syntax is that of the dynamic-prompts
extension of A1111.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from msgspec import structs

from serving.errors import InvalidRequest
from serving.generation.contract import GenerationParams

Wildcards = Mapping[str, Sequence[str]]

#: Of nested choices and of wildcards within wildcards.
_MAX_DEPTH = 10
_MAX_CHARS = 20_000
#: Texts chosen for one prompt.
_MAX_PICKS = 200
_WILDCARD = re.compile(r"__([\w/\-]{1,100}?)__")


def of_image(params: GenerationParams, seed: int) -> GenerationParams:
    """Return the parameters with the choices of ``seed``; the same seed chooses the same.

    Raises:
        InvalidRequest: the choices nest too deeply or their text is too long.
    """
    if not params.dynamic_prompts:
        return params
    wildcards = {wildcard.name: wildcard.texts for wildcard in params.wildcards}
    fields = {}
    for name in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
        text = getattr(params, name)
        if text is not None:
            # A second prompt takes the choices of the first.
            stream = random.Random(f"{seed}/{name.removesuffix('_2')}")
            fields[name] = _Chooser(stream, wildcards, name).expanded(text, 0)
    return structs.replace(params, dynamic_prompts=False, wildcards=(), **fields)


class _Chooser:
    def __init__(self, stream: random.Random, wildcards: Wildcards, field: str) -> None:
        self._random = stream
        self._wildcards = wildcards
        self._field = field
        self._picks = 0

    def expanded(self, text: str, depth: int) -> str:
        if depth > _MAX_DEPTH:
            raise InvalidRequest(self._field, f"choices nest more than {_MAX_DEPTH} deep")
        text = self._bounded(_WILDCARD.sub(lambda match: self._wildcard(match, depth), text))
        return self._bounded(self._choices(text, depth))

    def _bounded(self, text: str) -> str:
        if len(text) > _MAX_CHARS:
            raise InvalidRequest(self._field, f"its choices make more than {_MAX_CHARS} characters")
        return text

    def _wildcard(self, match: re.Match[str], depth: int) -> str:
        options = self._wildcards.get(match[1])
        if not options:
            return match[0]  # the parser warns of it
        return self.expanded(self._pick(options), depth + 1)

    def _choices(self, text: str, depth: int) -> str:
        ends = _pairs(text)
        parts: list[str] = []
        position = 0
        while position < len(text):
            character = text[position]
            end = ends.get(position)
            if character == "\\":
                parts.append(text[position : position + 2])
                position += 2
            elif end is None:
                parts.append(character)
                position += 1
            else:
                options = _options(text[position + 1 : end])
                whole = text[position : end + 1]
                made = self.expanded(self._pick(options), depth + 1) if options[1:] else whole
                parts.append(made)
                position = end + 1
        return "".join(parts)

    def _pick(self, options: Sequence[str]) -> str:
        self._picks += 1
        if self._picks > _MAX_PICKS:
            raise InvalidRequest(self._field, f"it has more than {_MAX_PICKS} choices")
        return options[int(self._random.random() * len(options))]


def _pairs(text: str) -> dict[int, int]:
    """Return the closing brace of each opening one, by position."""
    found: dict[int, int] = {}
    opened: list[int] = []
    position = 0
    while position < len(text):
        match text[position]:
            case "\\":
                position += 1
            case "{":
                opened.append(position)
            case "}" if opened:
                found[opened.pop()] = position
        position += 1
    return found


def _options(text: str) -> list[str]:
    """Split at the bars outside of inner braces."""
    options, depth, begin, position = [], 0, 0, 0
    while position < len(text):
        match text[position]:
            case "\\":
                position += 1
            case "{":
                depth += 1
            case "}":
                depth -= 1
            case "|" if depth == 0:
                options.append(text[begin:position])
                begin = position + 1
        position += 1
    return [*options, text[begin:]]
