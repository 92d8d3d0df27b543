"""Validation of text that is stored and returned."""

from __future__ import annotations


def is_storable(text: str) -> bool:
    """Return whether ``text`` has neither NUL, which PostgreSQL rejects, nor a lone surrogate
    (JSON's ``\\ud800``), which UTF-8 cannot encode in a response."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
