"""Who may do what: every verb against own, public, foreign and deleted; and signatures."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from assets.access import Verb, may, require
from assets.asset import Asset
from assets.errors import BadSignature, Forbidden
from assets.principal import ROLES, Principal
from assets.signing import Signer

ME = Principal("t1", "me")
MINE = Asset("asset_1", "t1", "me", "a", "lora", 0.0)
PUBLIC = replace(MINE, tenant_id="t2", owner="them", is_public=True, status="ready")


@pytest.mark.parametrize(
    ("asset", "allowed"),
    [
        (MINE, {"read", "use", "create", "update", "delete"}),
        (PUBLIC, {"read", "use"}),
        (replace(PUBLIC, is_public=False), set()),
        (replace(PUBLIC, status="ready_to_upload"), set()),
        (replace(MINE, deleted_at_s=1.0), {"restore"}),
        (replace(MINE, status="deleted"), {"restore"}),
        (replace(PUBLIC, status="deleted"), set()),
    ],
    ids=[
        "own",
        "public",
        "foreign",
        "public unready",
        "own deleted at",
        "own deleted",
        "public deleted",
    ],
)
def test_matrix(asset: Asset, allowed: set[str]) -> None:
    assert {verb for verb in get_args(Verb) if may(ME, verb, asset)} == allowed


def test_a_role_takes_away_and_never_gives() -> None:
    """Each role's verbs on each kind of asset, within what an owner may."""
    allowed = {"reader": {"read"}, "member": {"read", "use", "create", "update"}}
    deleted = replace(MINE, status="deleted")
    for role in ROLES:
        who = replace(ME, role=role)
        verbs = allowed.get(role, set(get_args(Verb)))
        for asset in (MINE, PUBLIC, replace(PUBLIC, is_public=False), deleted):
            by_owner = {verb for verb in get_args(Verb) if may(ME, verb, asset)}
            assert {verb for verb in get_args(Verb) if may(who, verb, asset)} == by_owner & verbs
        for verb in get_args(Verb):
            if verb in verbs:
                require(who, verb)
            else:
                with pytest.raises(Forbidden, match=role):
                    require(who, verb)


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
