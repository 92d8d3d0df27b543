"""Random choices in prompts, by each image's seed: ``{red|green}`` and wildcards, ``__color__``.

Choices nest; a backslash takes a brace literally. The syntax is that of the dynamic-prompts
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
_MAX_PICKS = 1_000
_WILDCARD = re.compile(r"__([\w/\-]{1,100}?)__")
_NETWORK = re.compile(r"<(?:lora|lyco|embed):|\bembedding:")


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


def check_choices(params: GenerationParams) -> None:
    """Check that no choice has an asset in it, as all images of a request share a recipe.

    Raises:
        InvalidRequest.
    """
    if not params.dynamic_prompts:
        return
    texts = [params.prompt, params.prompt_2, params.negative_prompt, params.negative_prompt_2]
    choices = [text for text in texts if text and "{" in text]
    inside = [text[text.index("{") : text.rindex("}") + 1] for text in choices if "}" in text]
    inside += [text for wildcard in params.wildcards for text in wildcard.texts]
    if any(_NETWORK.search(text) for text in inside):
        raise InvalidRequest(
            "prompt", "a choice or wildcard cannot have a LoRA or embedding: name it outside"
        )


class _Chooser:
    def __init__(self, stream: random.Random, wildcards: Wildcards, field: str) -> None:
        self._random = stream
        self._wildcards = wildcards
        self._field = field
        self._picks = 0

    def expanded(self, text: str, depth: int) -> str:
        if depth > _MAX_DEPTH:
            raise InvalidRequest(self._field, f"choices nest more than {_MAX_DEPTH} deep")
        text = _WILDCARD.sub(lambda match: self._wildcard(match, depth), text)
        made = self._choices(text, depth)
        if len(made) > _MAX_CHARS:
            raise InvalidRequest(self._field, f"its choices make more than {_MAX_CHARS} characters")
        return made

    def _wildcard(self, match: re.Match[str], depth: int) -> str:
        options = self._wildcards.get(match[1])
        if not options:
            return match[0]  # the parser warns of it
        return self.expanded(self._pick(options), depth + 1)

    def _choices(self, text: str, depth: int) -> str:
        parts: list[str] = []
        position = 0
        while position < len(text):
            character = text[position]
            if character == "\\":
                parts.append(text[position : position + 2])
                position += 2
            elif character == "{" and (end := _closing(text, position)) is not None:
                options = _options(text[position + 1 : end])
                if len(options) > 1:
                    parts.append(self.expanded(self._pick(options), depth + 1))
                else:
                    parts.append(text[position : end + 1])
                position = end + 1
            else:
                parts.append(character)
                position += 1
        return "".join(parts)

    def _pick(self, options: Sequence[str]) -> str:
        self._picks += 1
        if self._picks > _MAX_PICKS:
            raise InvalidRequest(self._field, f"it has more than {_MAX_PICKS} choices")
        return options[int(self._random.random() * len(options))]


def _closing(text: str, begin: int) -> int | None:
    depth = 0
    position = begin
    while position < len(text):
        match text[position]:
            case "\\":
                position += 1
            case "{":
                depth += 1
            case "}":
                depth -= 1
                if depth == 0:
                    return position
        position += 1
    return None


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
