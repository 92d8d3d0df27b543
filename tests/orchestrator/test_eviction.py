"""Which entries leave a tier."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.device_tier import DeviceTier
from orchestrator.eviction import FORGOTTEN_S, SESSION_S, Entry, victims

NOW_S = 10 * FORGOTTEN_S


def entry(key: str, ago_s: float, visits: int = 1, owner: str = "", size: int = 1) -> Entry:
    return Entry(key, size, owner, NOW_S - ago_s, visits, 0)


def leave(entries: list[Entry], needed: int = 1, share_bytes: float = 100.0) -> list[str]:
    owned: dict[str, int] = {}
    for one in entries:
        if one.owner:
            owned[one.owner] = owned.get(one.owner, 0) + one.size_bytes
    return victims(entries, needed, share_bytes, owned, NOW_S)


def test_what_is_in_use_stays_and_the_rest_goes_by_worth() -> None:
    lately = entry("lately", 1.0)
    before = entry("before", SESSION_S - 1)
    often = entry("often", 5 * SESSION_S, visits=9)
    once = entry("once", 2 * SESSION_S, visits=1)
    assert leave([lately, before, often, once], 4) == ["once", "often", "before", "lately"]


def test_no_more_leave_than_must() -> None:
    entries = [entry(str(index), 3600.0 + index, size=10) for index in range(5)]
    assert len(leave(entries, 11)) == 2
    assert len(leave(entries, 1_000)) == 5


def test_an_owner_who_comes_often_makes_its_assets_worth_more() -> None:
    seldom, often = entry("a", 3 * SESSION_S, owner="s"), entry("b", 9 * SESSION_S, owner="o")
    assert leave([seldom, replace(often, owner_visits=20)]) == ["a"]


def test_beyond_its_share_a_tenants_own_goes_first() -> None:
    mine = [entry(f"mine-{index}", float(index), owner="m") for index in range(6)]
    others = [entry(f"other-{index}", 4000.0 + index, owner="o") for index in range(3)]
    assert leave([*mine, *others], 3, share_bytes=4) == ["mine-5", "mine-4", "other-2"]


def test_what_nobody_has_used_for_a_day_protects_nobody() -> None:
    mine = [entry(f"mine-{index}", float(index), owner="m") for index in range(6)]
    old = entry("old", FORGOTTEN_S + 1, visits=50, owner="o")
    assert leave([*mine, old], 1, share_bytes=4) == ["old"]


def test_a_flood_leaves_the_others_their_share() -> None:
    now_s = 0.0
    tier: DeviceTier[None] = DeviceTier(20, clock=lambda: now_s)
    for index in range(10):
        tier.admit(f"other-{index}", 1, lambda: None, f"t{index}")[0].release()
    for index in range(200):
        now_s += 1.0
        tier.admit(f"flood-{index}", 1, lambda: None, "flood")[0].release()
    kept = tier.resident()
    assert sum(key.startswith("other") for key in kept) == 10
    assert "flood-199" in kept


def test_what_several_use_is_nobodys_own() -> None:
    tier: DeviceTier[None] = DeviceTier(4, clock=lambda: 0.0, share=0.5)
    for key in "abc":
        for tenant in ("t", "u"):
            tier.admit(key, 1, lambda: None, tenant)[0].release()
    tier.admit("own", 1, lambda: None, "t")[0].release()
    tier.admit("more", 1, lambda: None, "t")[0].release()
    assert "a" not in tier.resident()  # the oldest, though t has used it as well
    assert "own" in tier.resident()
