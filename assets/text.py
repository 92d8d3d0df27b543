"""Validation of text that is stored and returned."""

from __future__ import annotations


def is_storable(text: str) -> bool:
    """Whether there is no NUL (PostgreSQL rejects it) or lone surrogate (not UTF-8)."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
