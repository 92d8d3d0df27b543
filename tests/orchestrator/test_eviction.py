"""Which entries leave a tier."""

from __future__ import annotations

import math

from orchestrator.device_tier import DeviceTier
from orchestrator.eviction import FORGOTTEN_BUDGETS, FORGOTTEN_S, AccessHistory, TierEntry, victims

NOW_S = 10 * FORGOTTEN_S
#: In a session are entries since whose last use less has been used.
SESSION_BYTES = 100.0
BUDGET_BYTES = 500


def entry(
    key: str,
    since: float,
    visits: float = 1,
    tenant_id: str = "",
    size: int = 1,
    ago_s: float = 1.0,
) -> TierEntry:
    return TierEntry(key, size, tenant_id, NOW_S - ago_s, since, visits)


def leave(entries: list[TierEntry], needed: int = 1, share_bytes: float = 100.0) -> list[str]:
    owned: dict[str, int] = {}
    for one in entries:
        if one.tenant_id:
            owned[one.tenant_id] = owned.get(one.tenant_id, 0) + one.size_bytes
    share = share_bytes / BUDGET_BYTES
    return victims(entries, needed, BUDGET_BYTES, share, owned, NOW_S, SESSION_BYTES)


def test_what_is_in_use_stays_and_the_rest_goes_by_worth() -> None:
    lately, before = entry("lately", 1.0), entry("before", SESSION_BYTES)
    often, once = entry("often", 500.0, visits=9), entry("once", 200.0, visits=1)
    assert leave([lately, before, often, once], 4) == ["once", "often", "before", "lately"]


def test_with_an_endless_session_it_is_the_least_recently_used() -> None:
    entries = [entry(str(since), since, visits=since) for since in (5.0, 900.0, 70.0)]
    assert victims(entries, 3, BUDGET_BYTES, 1.0, {}, NOW_S, math.inf) == ["900.0", "70.0", "5.0"]


def test_no_more_leave_than_must() -> None:
    entries = [entry(str(index), 200.0 + index, size=10) for index in range(5)]
    assert len(leave(entries, 11)) == 2
    assert len(leave(entries, 1_000)) == 5


def test_visits_are_counted_and_uses_close_together_are_one() -> None:
    visits = AccessHistory(session_bytes=10)
    for _ in range(5):
        visits.used("a", 2, "", 1.0)
    assert visits.worth("a") == 1
    visits.used("b", 20, "", 2.0)
    visits.used("a", 2, "", 3.0)
    assert visits.worth("a") == 2
    seen = visits.entry("a", 2)
    assert (seen.since_bytes, seen.last_used_s) == (0, 3.0)
    assert visits.entry("b", 20).since_bytes == 2
    never = visits.entry("c", 1, last_used_s=7.0)
    assert (never.worth, never.since_bytes, never.last_used_s) == (0, math.inf, 7.0)


def test_an_owner_who_comes_often_makes_its_assets_worth_more() -> None:
    visits = AccessHistory(session_bytes=1)
    for key, tenant_id in (
        ("a", "seldom"),
        ("b", "often"),
        *((f"c{i}", "often") for i in range(9)),
    ):
        visits.used(key, 5, tenant_id, 1.0)
    assert visits.worth("b") > visits.worth("a")


def test_beyond_its_share_a_tenants_own_goes_first() -> None:
    mine = [entry(f"mine-{index}", float(index), tenant_id="m") for index in range(6)]
    others = [entry(f"other-{index}", 400.0 + index, tenant_id="o") for index in range(3)]
    assert leave([*mine, *others], 3, share_bytes=4) == ["mine-5", "mine-4", "other-2"]


def test_what_is_not_used_any_more_is_protected_from_nobody() -> None:
    mine = [entry(f"mine-{index}", float(index), tenant_id="m") for index in range(6)]
    since, ago_s = FORGOTTEN_BUDGETS * BUDGET_BYTES + 1, FORGOTTEN_S + 1
    old = entry("old", since, visits=50, tenant_id="o", ago_s=ago_s)
    assert leave([*mine, old], 1, share_bytes=4) == ["old"]
    for lately in (
        entry("old", since, visits=50, tenant_id="o"),
        entry("old", since - 2, visits=50, tenant_id="o", ago_s=ago_s),
    ):
        assert leave([*mine, lately], 1, share_bytes=4) == ["mine-5"]


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
