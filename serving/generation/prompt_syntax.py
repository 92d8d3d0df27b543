"""Detection of other programs' prompt syntax, which is plain text here.

AUTOMATIC1111 and OctoAI: ``(word:1.2)``, ``((word))``; A1111: ``<lora:NAME:0.8>``, ``[a|b]``,
``[a:b:0.5]``, ``BREAK``; ComfyUI: ``embedding:NAME``; compel: ``(word)1.2``, ``(word)++``;
wildcards: ``__name__``, ``{a|b}``. Not ``a house (old)``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SHOWN_CHARS = 60
_MAX_WARNINGS = 8

#: (pattern, advice). No nested quantifiers, which bounds the backtracking.
_SYNTAX: Sequence[tuple[re.Pattern[str], str]] = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (r"<(?:lora|lyco):[^<>\n]{1,200}>", "use the field loras"),
        (r"<(?:hypernet|embed):[^<>\n]{1,200}>", "reference the asset in the request"),
        (r"\bembedding:[\w.\-]+", "use the field textual_inversions"),
        (r"\([^()\n]{0,500}:\s*[+-]?\d*\.?\d+\s*\)", "prompt weights are not supported"),
        (r"\(\([^()\n]{1,500}\)\)", "prompt weights are not supported"),
        (
            r"\[[^\[\]|\n]{0,500}:[^\[\]\n]{0,500}:\s*\d*\.?\d+\s*\]",
            "prompt editing is not supported",
        ),
        (r"\[[^\[\]\n]{0,500}\|[^\[\]\n]{0,500}\]", "alternating words are not supported"),
        (r"\[[^\[\]:|\n]{1,500}\]", "prompt weights are not supported"),
        (r"\{[^{}\n]{0,500}\|[^{}\n]{0,500}\}", "random choices are not supported"),
        (
            r"\([^()\n]{1,500}\)(?:\d*\.\d+|[+-]{1,8})(?=[\s,.]|$)",
            "prompt weights are not supported",
        ),
        (r"\b__[\w/\-]{1,100}__\b", "wildcards are not supported"),
        (r"\bBREAK\b", "prompt chunks are not supported"),
        (r"\bAND\b(?=[^,.]{0,200}:\d)", "prompt composition is not supported"),
    )
)  # fmt: skip


def unsupported_syntax(*prompts: str | None) -> tuple[str, ...]:
    """Return up to ``_MAX_WARNINGS`` warnings."""
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
