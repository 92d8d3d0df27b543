"""Organisations: plans, members, keys, audit log."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from assets.ids import ulid
from assets.plan import UNLIMITED, Plan
from assets.principal import KeyRole
from serving.errors import InvalidRequest, NotFound, Unauthenticated
from serving.tenants.audit import Audit
from serving.tenants.directory import Directory, Member


@pytest.fixture
def directory(database: Engine) -> Directory:
    return Directory(database)


def test_a_changed_plan_applies_to_its_tenants(directory: Directory) -> None:
    name, plan = f"t{ulid()}", Plan(f"p{ulid()}", weight=2.0, requests_per_min=60, assets=5)
    with pytest.raises(InvalidRequest, match="no plan"):
        directory.add_tenant(name, plan="nothing")
    directory.put_plan(plan)
    directory.add_tenant(name, weight=1.5, plan=plan.name)
    key = directory.keyring.add_key(name)
    principal = directory.keyring.authenticate(key.text)
    assert (principal.plan, principal.weight) == (plan, 3.0)
    directory.put_plan(Plan(plan.name, assets=6))
    assert directory.keyring.authenticate(key.text).plan == Plan(plan.name, assets=6)
    directory.set_plan(name, "unlimited")
    assert directory.keyring.authenticate(key.text).plan == UNLIMITED
    assert {p.name for p in directory.plans()} >= {plan.name, "unlimited"}
    for bad in (Plan("No"), Plan("unlimited"), Plan("ok", assets=0), Plan("ok", weight=-1.0)):
        with pytest.raises(InvalidRequest):
            directory.put_plan(bad)


def test_a_members_keys_are_limited_by_its_role_and_revoked_with_it(directory: Directory) -> None:
    name = f"t{ulid()}"
    directory.add_tenant(name)
    ann = directory.add_member(name, "ann@example.com", "member")
    roles: tuple[KeyRole, ...] = ("owner", "reader")
    keys = {role: directory.keyring.add_key(name, "", role, member=ann.name) for role in roles}
    principal = directory.keyring.authenticate(keys["owner"].text)
    assert (principal.role, principal.member_id) == ("member", ann.id)
    assert directory.keyring.authenticate(keys["reader"].text).role == "reader"
    rotated = directory.keyring.rotate_key(keys["reader"].id, 0.0)
    assert directory.keyring.authenticate(rotated.text).member_id == ann.id
    own = directory.keyring.add_key(name)
    directory.remove_member(name, ann.name)
    for key in (keys["owner"], rotated):
        with pytest.raises(Unauthenticated):
            directory.keyring.authenticate(key.text)
    assert directory.keyring.authenticate(own.text).role == "owner"
    assert directory.members(name) == []
    with pytest.raises(InvalidRequest, match="no member"):
        directory.keyring.add_key(name, member=ann.name)
    again = directory.add_member(name, ann.name, "owner")
    assert (again.id, again.role) == (
        ann.id,
        "owner",
    )  # the same id owns its private assets again
    calls: tuple[Callable[[], Member], ...] = (
        lambda: directory.add_member(name, ann.name),
        lambda: directory.add_member(name, "two words"),
        lambda: directory.add_member(name, "x", "king"),  # type: ignore[arg-type]
    )
    for call in calls:
        with pytest.raises(InvalidRequest):
            call()
    with pytest.raises(NotFound):
        directory.remove_member(name, "nobody")


def test_an_organisation_cannot_change_anothers_keys(directory: Directory) -> None:
    mine, theirs = f"t{ulid()}", f"u{ulid()}"
    for name in (mine, theirs):
        directory.add_tenant(name)
    key = directory.keyring.add_key(theirs)
    for call in (
        lambda: directory.keyring.revoke_key(key.id, mine),
        lambda: directory.keyring.rotate_key(key.id, 0.0, mine),
    ):
        with pytest.raises(NotFound) as foreign:
            call()
        with pytest.raises(NotFound) as unknown:
            directory.keyring.revoke_key("nothing", mine)
        assert str(foreign.value).replace(key.id, "?") == str(unknown.value).replace("nothing", "?")
    assert directory.keyring.authenticate(key.text).tenant_name == theirs


def test_every_administrative_action_is_audited(directory: Directory, database: Engine) -> None:
    name = f"t{ulid()}"
    tenant = directory.add_tenant(name)
    directory.add_member(name, "ann", actor="k0")
    key = directory.keyring.add_key(name, member="ann", actor="k0")
    directory.keyring.rotate_key(key.id, 1.0, actor="k1")
    directory.keyring.revoke_key(key.id, actor="k1")
    directory.remove_member(name, "ann")
    audit = Audit(database)
    acts = audit.acts(tenant.id)
    assert [(act.act, act.actor) for act in reversed(acts)] == [
        ("tenant.create", "operator"),
        ("member.add", "k0"),
        ("key.create", "k0"),
        ("key.rotate", "k1"),
        ("key.revoke", "k1"),
        ("member.remove", "operator"),
    ]
    assert audit.acts(tenant.id, limit=2, before=acts[1].id) == acts[2:4]
    assert key.text not in repr(acts)
