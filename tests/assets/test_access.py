"""Who may do what: every verb, asset and role; and signatures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from assets.access import Verb, may, require
from assets.asset import Asset
from assets.errors import BadSignature, Forbidden
from assets.principal import ROLES, Principal, Role
from assets.storage.signing import Signer

DOCUMENT = Path(__file__).parents[2] / "docs" / "authorisation.md"
#: Everybody who may ask, and every asset there may be, seen from them.
WHO = {role: Principal("t1", "me", role=role, member_id="ann") for role in ROLES}
_OWN = Asset("asset_1", "t1", "me", "a", "lora", 0.0, status="ready", created_by="ann")
_THEIRS = replace(_OWN, tenant_id="t2", owner="them")
WHAT = {
    "own, private": _OWN,
    "own, public": replace(_OWN, visibility="public"),
    "own, uploading": replace(_OWN, status="ready_to_upload"),
    "organisation's": replace(_OWN, visibility="organisation", created_by="bob"),
    "a colleague's, private": replace(_OWN, created_by="bob"),
    "own, deleted": replace(_OWN, status="deleted", deleted_at_s=1.0),
    "others', shared with us": replace(_THEIRS, visibility="shared", shared_with=("me", "you")),
    "others', shared with others": replace(_THEIRS, visibility="shared", shared_with=("you",)),
    "others', public": replace(_THEIRS, visibility="public"),
    "others', public, not ready": replace(_THEIRS, visibility="public", status="uploaded"),
    "others', public, deleted": replace(_THEIRS, visibility="public", status="deleted"),
    "others', organisation's": replace(_THEIRS, visibility="organisation"),
    "others', private": _THEIRS,
}
LOOKS = {"read", "inspect", "download"}
WORKS = {*LOOKS, "use", "create", "update"}
ALL = {*WORKS, "share", "delete"}
NO: set[str] = set()
#: What each role may do to each: anonymous, reader, member, owner. Written by hand, on purpose.
ALLOWED: dict[str, tuple[set[str], ...]] = {
    "own, private": (NO, LOOKS, WORKS, ALL),
    "own, public": ({"use"}, LOOKS, WORKS, ALL),
    "own, uploading": (NO, LOOKS, WORKS, ALL),
    "organisation's": (NO, LOOKS, WORKS, ALL),
    "a colleague's, private": (NO, NO, NO, ALL),
    "own, deleted": (NO, NO, NO, {"restore"}),
    "others', shared with us": (NO, {"read"}, {"read", "use"}, {"read", "use"}),
    "others', shared with others": (NO, NO, NO, NO),
    "others', public": (
        {"use"}, {"read", "download"}, {"read", "download", "use"}, {"read", "download", "use"},
    ),
    "others', public, not ready": (NO, NO, NO, NO),
    "others', public, deleted": (NO, NO, NO, NO),
    "others', organisation's": (NO, NO, NO, NO),
    "others', private": (NO, NO, NO, NO),
}  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("what", WHAT)
def test_matrix(what: str, role: Role) -> None:
    given = {verb for verb in get_args(Verb) if may(WHO[role], verb, WHAT[what])}
    assert given == ALLOWED[what][ROLES.index(role)]


def test_a_role_is_asked_before_anything_is_looked_up() -> None:
    for role in ROLES:
        for verb in get_args(Verb):
            if any(may(WHO[role], verb, asset) for asset in WHAT.values()):
                require(WHO[role], verb)
            else:
                with pytest.raises(Forbidden, match=role):
                    require(WHO[role], verb)


def test_the_document_says_the_same() -> None:
    lines = [f"| asset | {' | '.join(ROLES)} |", "|---|---|---|---|---|"]
    for what, asset in WHAT.items():
        cells = [
            " ".join(verb for verb in get_args(Verb) if may(WHO[role], verb, asset)) or "–"
            for role in ROLES
        ]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    assert "\n".join(lines) in DOCUMENT.read_text(), "\n".join(lines)


def test_a_signature_allows_one_verb_on_one_key_for_a_while() -> None:
    signer = Signer(b"secret")
    token = signer.sign("PUT", "uploads/a", 100)
    signer.verify("PUT", "uploads/a", token, 99.0)
    for verb, key, given, now in (
        ("GET", "uploads/a", token, 99.0),
        ("PUT", "uploads/b", token, 99.0),
        ("PUT", "uploads/a", token, 101.0),
        ("PUT", "uploads/a", "200" + token[3:], 99.0),
        ("PUT", "uploads/a", "", 99.0),
        ("PUT", "uploads/a", "é.é", 99.0),
    ):
        with pytest.raises(BadSignature):
            signer.verify(verb, key, given, now)
    with pytest.raises(BadSignature):
        Signer(b"other").verify("PUT", "uploads/a", token, 99.0)
