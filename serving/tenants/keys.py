"""The format of API keys, ``ao_SHORT_LONG``: shown once, stored hashed, looked up by SHORT."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

PREFIX = "ao"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A newly created key; the only time its ``text`` is known."""

    id: str
    text: str
    digest: str


def new_key() -> NewKey:
    short, long = secrets.token_hex(5), secrets.token_urlsafe(24).replace("_", "-")
    text = f"{PREFIX}_{short}_{long}"
    return NewKey(short, text, digest(text))


def digest(text: str) -> str:
    """Return the SHA-256 of a key. It has 192 random bits, so an unsalted hash is safe."""
    return hashlib.sha256(text.encode()).hexdigest()


def key_id(text: str) -> str | None:
    """Return the SHORT part of a key; None if ``text`` is malformed."""
    parts = text.split("_")
    return parts[1] if len(parts) == 3 and parts[0] == PREFIX else None


def matches(text: str, stored_digest: str) -> bool:
    return hmac.compare_digest(digest(text), stored_digest)
