"""The eviction order of a tier."""

from __future__ import annotations

import math

from orchestrator.device_tier import DeviceTier
from orchestrator.eviction import FORGOTTEN_BUDGETS, FORGOTTEN_S, AccessHistory, TierEntry, victims

NOW_S = 10 * FORGOTTEN_S
#: Entries used within it are in a session.
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


def evicted(entries: list[TierEntry], needed: int = 1, share_bytes: float = 100.0) -> list[str]:
    owned: dict[str, int] = {}
    for each in entries:
        if each.tenant_id:
            owned[each.tenant_id] = owned.get(each.tenant_id, 0) + each.size_bytes
    share = share_bytes / BUDGET_BYTES
    return victims(entries, needed, BUDGET_BYTES, share, owned, NOW_S, SESSION_BYTES)


def test_idle_entries_go_by_worth_and_then_those_in_a_session_by_age() -> None:
    newer, older = entry("newer", 1.0), entry("older", SESSION_BYTES)
    often, once = entry("often", 500.0, visits=9), entry("once", 200.0, visits=1)
    assert evicted([newer, older, often, once], 4) == ["once", "often", "older", "newer"]


def test_an_infinite_session_is_lru() -> None:
    entries = [entry(str(since), since, visits=since) for since in (5.0, 900.0, 70.0)]
    assert victims(entries, 3, BUDGET_BYTES, 1.0, {}, NOW_S, math.inf) == ["900.0", "70.0", "5.0"]


def test_no_more_entries_are_evicted_than_necessary() -> None:
    entries = [entry(str(index), 200.0 + index, size=10) for index in range(5)]
    assert len(evicted(entries, 11)) == 2
    assert len(evicted(entries, 1_000)) == 5


def test_uses_within_a_session_are_one_visit() -> None:
    visits = AccessHistory(session_bytes=10)
    for _ in range(5):
        visits.used("a", 2, "", 1.0)
    assert visits.worth("a") == 1
    visits.used("b", 20, "", 2.0)
    visits.used("a", 2, "", 3.0)
    assert visits.worth("a") == 2
    known = visits.entry("a", 2)
    assert (known.bytes_since_use, known.last_used_s) == (0, 3.0)
    assert visits.entry("b", 20).bytes_since_use == 2
    unknown = visits.entry("c", 1, last_used_s=7.0)
    assert (unknown.worth, unknown.bytes_since_use, unknown.last_used_s) == (0, math.inf, 7.0)


def test_a_frequent_owner_raises_the_worth_of_its_assets() -> None:
    visits = AccessHistory(session_bytes=1)
    for key, tenant_id in (
        ("a", "seldom"),
        ("b", "often"),
        *((f"c{i}", "often") for i in range(9)),
    ):
        visits.used(key, 5, tenant_id, 1.0)
    assert visits.worth("b") > visits.worth("a")


def test_a_tenant_over_its_share_loses_its_own_entries_first() -> None:
    mine = [entry(f"mine-{index}", float(index), tenant_id="m") for index in range(6)]
    others = [entry(f"other-{index}", 400.0 + index, tenant_id="o") for index in range(3)]
    assert evicted([*mine, *others], 3, share_bytes=4) == ["mine-5", "mine-4", "other-2"]


def test_long_unused_entries_are_not_protected() -> None:
    mine = [entry(f"mine-{index}", float(index), tenant_id="m") for index in range(6)]
    since, ago_s = FORGOTTEN_BUDGETS * BUDGET_BYTES + 1, FORGOTTEN_S + 1
    old = entry("old", since, visits=50, tenant_id="o", ago_s=ago_s)
    assert evicted([*mine, old], 1, share_bytes=4) == ["old"]
    for protected in (
        entry("old", since, visits=50, tenant_id="o"),
        entry("old", since - 2, visits=50, tenant_id="o", ago_s=ago_s),
    ):
        assert evicted([*mine, protected], 1, share_bytes=4) == ["mine-5"]


def test_a_flood_by_one_tenant_does_not_evict_the_others() -> None:
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


def test_shared_entries_have_no_owner() -> None:
    tier: DeviceTier[None] = DeviceTier(4, clock=lambda: 0.0, share=0.5)
    for key in "abc":
        for tenant in ("t", "u"):
            tier.admit(key, 1, lambda: None, tenant)[0].release()
    tier.admit("own", 1, lambda: None, "t")[0].release()
    tier.admit("more", 1, lambda: None, "t")[0].release()
    assert "a" not in tier.resident()  # the oldest; t has used it, but not alone
    assert "own" in tier.resident()
