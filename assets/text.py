"""Which text can be stored and returned: all but NUL and halves of characters."""

from __future__ import annotations


def is_storable(text: str) -> bool:
    """PostgreSQL keeps no NUL. JSON can spell a lone surrogate (``\\ud800``), which UTF-8 cannot
    hold: an answer that contains one cannot be sent."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
