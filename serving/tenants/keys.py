"""API keys, ``ao_SHORT_LONG``: shown once, stored hashed, looked up by SHORT."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

PREFIX = "ao"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new key; ``text`` is not stored."""

    id: str
    text: str
    digest: str


def new_key() -> NewKey:
    short, long = secrets.token_hex(5), secrets.token_urlsafe(24).replace("_", "-")
    text = f"{PREFIX}_{short}_{long}"
    return NewKey(short, text, digest(text))


def digest(text: str) -> str:
    """Return a SHA-256: 192 random bits need no salt."""
    return hashlib.sha256(text.encode()).hexdigest()


def key_id(text: str) -> str | None:
    """Return the SHORT part; None if malformed."""
    parts = text.split("_")
    return parts[1] if len(parts) == 3 and parts[0] == PREFIX else None


def matches(text: str, stored_digest: str) -> bool:
    return hmac.compare_digest(digest(text), stored_digest)
