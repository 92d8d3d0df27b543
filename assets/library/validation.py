"""What may be said of an asset: its name, who sees it, until when."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from assets.access import require
from assets.asset import VISIBILITIES, Visibility
from assets.errors import InvalidAsset
from assets.principal import Principal

#: Of a name: characters, and bytes of UTF-8, so that a file system can hold it.
MAX_NAME_CHARS, MAX_NAME_BYTES = 128, 224
_MARKS = ("Mn", "Mc")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
MAX_SHARED_WITH = 64
_LONGEST_S = 100 * 365 * 24 * 3600.0


def normal_name(name: str) -> str:
    """One spelling of names that look the same (Unicode's normal form C)."""
    return unicodedata.normalize("NFC", name)


def is_name_character(character: str) -> bool:
    """Letters and digits of any script, the marks that belong to them, and ``- _ .``"""
    return character in "-_." or character.isalnum() or unicodedata.category(character) in _MARKS


def check_name(name: str) -> None:
    """Raises InvalidAsset unless it is a name in its normal form."""
    model_fingerprint = 0 < len(name) <= MAX_NAME_CHARS and len(name.encode()) <= MAX_NAME_BYTES
    if not (model_fingerprint and name[0].isalnum() and all(map(is_name_character, name))):
        raise InvalidAsset(
            "name", f"a name is 1 to {MAX_NAME_CHARS} letters, digits, '-', '_' or '.' (at most "
            f"{MAX_NAME_BYTES} bytes of UTF-8), and begins with a letter or digit",
        )  # fmt: skip


def check_expiry(expires_at_s: float | None, now_s: float) -> None:
    """Raises InvalidAsset when the moment has passed, or is beyond what calendars can say."""
    if expires_at_s is None:
        return
    if expires_at_s <= now_s:
        raise InvalidAsset("expires_at", "it would have expired already")
    if expires_at_s > now_s + _LONGEST_S:
        raise InvalidAsset("expires_at", "at most a hundred years from now; or leave it out")


def checked_visibility(principal: Principal, wanted: str, shared_with: Sequence[str]) -> Visibility:
    """Raises InvalidAsset, or Forbidden when it leaves the organisation and may not."""
    if wanted not in VISIBILITIES:
        raise InvalidAsset("visibility", f"{wanted!r} is none of {', '.join(VISIBILITIES)}")
    if wanted in ("shared", "public"):
        require(principal, "share")
    if wanted == "shared":
        if not shared_with:
            raise InvalidAsset("shared_with", "name the tenants that it is shared with")
        if len(shared_with) > MAX_SHARED_WITH or not all(map(_TENANT.match, shared_with)):
            raise InvalidAsset("shared_with", f"at most {MAX_SHARED_WITH} names of tenants")
    return next(visibility for visibility in VISIBILITIES if visibility == wanted)
