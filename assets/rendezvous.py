"""Rendezvous hashing: every process finds the same home for a key, and few keys move when a name
comes or goes."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b


def ranked(key: str, names: Iterable[str]) -> list[str]:
    """Return all names, the key's home first."""
    return sorted(names, key=lambda name: _rank(key, name))


def home(key: str, names: Iterable[str]) -> str:
    """Return the key's home. Raises ValueError if ``names`` is empty."""
    return min(names, key=lambda name: _rank(key, name))


def _rank(key: str, name: str) -> bytes:
    return blake2b(f"{key}/{name}".encode(), digest_size=8).digest()
