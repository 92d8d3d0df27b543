"""Validation of an asset's name, visibility and expiry."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from assets.access import require
from assets.asset import VISIBILITIES, Visibility
from assets.errors import InvalidAsset
from assets.principal import Principal

#: A name fits a file name; bytes of UTF-8.
MAX_NAME_CHARS, MAX_NAME_BYTES = 128, 224
_MARKS = ("Mn", "Mc")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
MAX_SHARED_WITH = 64
_LONGEST_S = 100 * 365 * 24 * 3600.0


def normal_name(name: str) -> str:
    """Return Unicode normal form C: names that look equal are equal."""
    return unicodedata.normalize("NFC", name)


def is_name_character(character: str) -> bool:
    """Whether it is any script's letter, digit or mark, or ``-_.``"""
    return character in "-_." or character.isalnum() or unicodedata.category(character) in _MARKS


def check_name(name: str) -> None:
    """Raise InvalidAsset unless ``name``, in normal form, is valid."""
    has_valid_length = 0 < len(name) <= MAX_NAME_CHARS and len(name.encode()) <= MAX_NAME_BYTES
    if not (has_valid_length and name[0].isalnum() and all(map(is_name_character, name))):
        raise InvalidAsset(
            "name", f"a name is 1 to {MAX_NAME_CHARS} letters, digits, '-', '_' or '.' (at most "
            f"{MAX_NAME_BYTES} bytes of UTF-8), and begins with a letter or digit",
        )  # fmt: skip


def check_expiry(expires_at_s: float | None, now_s: float) -> None:
    """Raise InvalidAsset for a past time, or over a hundred years ahead (calendar limits)."""
    if expires_at_s is None:
        return
    if expires_at_s <= now_s:
        raise InvalidAsset("expires_at", "this time has passed; give a later one or leave it out")
    if expires_at_s > now_s + _LONGEST_S:
        raise InvalidAsset("expires_at", "at most a hundred years from now; or leave it out")


def checked_visibility(
    principal: Principal, visibility: str, shared_with: Sequence[str]
) -> Visibility:
    """Return the visibility. Raises InvalidAsset; Forbidden: the role may not share."""
    if visibility not in VISIBILITIES:
        raise InvalidAsset(
            "visibility", f"{visibility!r} is not supported; accepted: {', '.join(VISIBILITIES)}"
        )
    if visibility in ("shared", "public"):
        require(principal, "share")
    if visibility == "shared":
        if not shared_with:
            raise InvalidAsset("shared_with", "list the tenants to share the asset with")
        if len(shared_with) > MAX_SHARED_WITH or not all(map(_TENANT.match, shared_with)):
            raise InvalidAsset(
                "shared_with", f"a list of at most {MAX_SHARED_WITH} valid tenant names is accepted"
            )
    return next(known for known in VISIBILITIES if known == visibility)
