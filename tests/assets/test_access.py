"""Authorization by verb, asset and role; URL signatures."""

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
#: Every role; assets as seen by member ``ann`` of tenant ``me``.
PRINCIPALS = {role: Principal("t1", "me", role=role, member_id="ann") for role in ROLES}
_OWN = Asset("asset_1", "t1", "me", "a", "lora", 0.0, status="ready", created_by="ann")
_THEIRS = replace(_OWN, tenant_id="t2", owner="them")
ASSETS = {
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
#: Allowed to anonymous, reader, member, owner. Written by hand: an oracle for may().
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
@pytest.mark.parametrize("label", ASSETS)
def test_may_matches_the_table(label: str, role: Role) -> None:
    allowed = {verb for verb in get_args(Verb) if may(PRINCIPALS[role], verb, ASSETS[label])}
    assert allowed == ALLOWED[label][ROLES.index(role)]


def test_require_refuses_verbs_allowed_on_no_asset() -> None:
    for role in ROLES:
        for verb in get_args(Verb):
            if any(may(PRINCIPALS[role], verb, asset) for asset in ASSETS.values()):
                require(PRINCIPALS[role], verb)
            else:
                with pytest.raises(Forbidden, match=role):
                    require(PRINCIPALS[role], verb)


def test_document_matches_may() -> None:
    lines = [f"| asset | {' | '.join(ROLES)} |", "|---|---|---|---|---|"]
    for label, asset in ASSETS.items():
        cells = [
            " ".join(verb for verb in get_args(Verb) if may(PRINCIPALS[role], verb, asset)) or "–"
            for role in ROLES
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    assert "\n".join(lines) in DOCUMENT.read_text(), "\n".join(lines)


def test_signature_permits_one_verb_on_one_key_until_expiry() -> None:
    signer = Signer(b"secret")
    token = signer.sign("PUT", "uploads/a", 100)
    signer.verify("PUT", "uploads/a", token, 99.0)
    for verb, key, altered, now in (
        ("GET", "uploads/a", token, 99.0),
        ("PUT", "uploads/b", token, 99.0),
        ("PUT", "uploads/a", token, 101.0),
        ("PUT", "uploads/a", "200" + token[3:], 99.0),
        ("PUT", "uploads/a", "", 99.0),
        ("PUT", "uploads/a", "é.é", 99.0),
    ):
        with pytest.raises(BadSignature):
            signer.verify(verb, key, altered, now)
    with pytest.raises(BadSignature):
        Signer(b"other").verify("PUT", "uploads/a", token, 99.0)
