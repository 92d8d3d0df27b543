"""Pieces of prompts that other programs obey and this one reads as text.

AUTOMATIC1111's and OctoAI's weights, ``(word:1.2)`` and ``((word))``; A1111's ``<lora:NAME:0.8>``,
``[a|b]``, ``[a:b:0.5]`` and ``BREAK``; ComfyUI's ``embedding:NAME``; compel's ``(word)1.2`` and
``(word)++``; wildcards ``__name__`` and ``{a|b}``. A plain bracket, as in ``a house (old)``, is
none of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SHOWN_CHARS = 60
_MAX_WARNINGS = 8

#: (what the piece looks like, what to do). No quantifier is nested in another.
_SYNTAX: Sequence[tuple[re.Pattern[str], str]] = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (r"<(?:lora|lyco):[^<>\n]{1,200}>", "put it into loras"),
        (r"<(?:hypernet|embed):[^<>\n]{1,200}>", "put it into the request's assets"),
        (r"\bembedding:[\w.\-]+", "put it into textual_inversions"),
        (r"\([^()\n]{0,500}:\s*[+-]?\d*\.?\d+\s*\)", "prompts have no weights here"),
        (r"\(\([^()\n]{1,500}\)\)", "prompts have no weights here"),
        (
            r"\[[^\[\]|\n]{0,500}:[^\[\]\n]{0,500}:\s*\d*\.?\d+\s*\]",
            "words do not change between steps",
        ),
        (r"\[[^\[\]\n]{0,500}\|[^\[\]\n]{0,500}\]", "words do not alternate here"),
        (r"\[[^\[\]:|\n]{1,500}\]", "prompts have no weights here"),
        (r"\{[^{}\n]{0,500}\|[^{}\n]{0,500}\}", "nothing is chosen by chance here"),
        (r"\([^()\n]{1,500}\)(?:\d*\.\d+|[+-]{1,8})(?=[\s,.]|$)", "prompts have no weights here"),
        (r"\b__[\w/\-]{1,100}__\b", "there are no wildcards here"),
        (r"\bBREAK\b", "prompts are not cut into parts here"),
        (r"\bAND\b(?=[^,.]{0,200}:\d)", "prompts are not combined here"),
    )
)  # fmt: skip


def unserved_syntax(*prompts: str | None) -> tuple[str, ...]:
    """A warning for each piece that is read as text and means more elsewhere."""
    warnings: dict[str, None] = {}
    for prompt in prompts:
        for pattern, advice in _SYNTAX if prompt else ():
            for match in pattern.finditer(prompt or ""):
                piece = match[0]
                shown = piece if len(piece) <= _SHOWN_CHARS else piece[:_SHOWN_CHARS] + "…"
                warnings[f"{shown} is read as text: {advice}"] = None
                if len(warnings) == _MAX_WARNINGS:
                    return tuple(warnings)
    return tuple(warnings)
