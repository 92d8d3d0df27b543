"""Asset identifiers: ``asset_`` and a ULID in lower-case Crockford base32.

48 bits of milliseconds, 80 random bits. OctoAI's form (``asset_01hdpjv7bxe1n99eazrv23ca1k``).
"""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PATTERN = re.compile(r"asset_[0-9a-hjkmnp-tv-z]{26}\Z")


def ulid(now_s: float | None = None) -> str:
    """Return a new ULID of 26 characters."""
    stamp = int((time.time() if now_s is None else now_s) * 1000)
    value = (stamp & (1 << 48) - 1) << 80 | secrets.randbits(80)
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def new_asset_id(now_s: float | None = None) -> str:
    return "asset_" + ulid(now_s)


def is_asset_id(reference: str) -> bool:
    return _PATTERN.match(reference) is not None
