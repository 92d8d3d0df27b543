"""The choice of a tier's eviction policy by simulated misses."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.replay.caches import belady_misses, lru_misses, tier_misses, visits_misses
from benchmarks.replay.streams import HELD_OUT, TUNED_ON
from orchestrator.device_tier import DeviceTier
from orchestrator.eviction import AccessHistory, victims
from orchestrator.policy_selection import SESSION, EvictionPolicy, PolicySelector, SimulatedTier


def keys(seed: int, count: int = 600) -> Iterator[tuple[str, int]]:
    """Yield keys and sizes with skewed popularity."""
    rng = random.Random(seed)
    for _ in range(count):
        key = int(rng.paretovariate(0.7))
        yield f"k{key % 40}", 1 + key % 3


def test_a_simulated_tier_with_an_infinite_session_misses_like_lru() -> None:
    visits = AccessHistory(inf)
    simulated = SimulatedTier(12, inf, visits.worth)
    kept: OrderedDict[str, int] = OrderedDict()
    for key, size in keys(1):
        at = visits.used(key, size, "", 0.0)
        missing = key not in kept
        assert simulated.used(key, size, at) is missing
        kept.pop(key, None)
        while sum(kept.values()) + size > 12:
            kept.popitem(last=False)
        kept[key] = size


@pytest.mark.parametrize("seed", range(5))
def test_a_simulated_tier_evicts_in_the_order_of_victims(seed: int) -> None:
    """Its lazy heap agrees with ``victims``, which sorts."""
    budget, session = 12, 9.0
    visits = AccessHistory(session)
    simulated = SimulatedTier(budget, session, visits.worth)
    held: dict[str, int] = {}
    for key, size in keys(seed):
        before = {k: visits.entry(k, s) for k, s in held.items() if k != key}
        now = visits.used(key, size, "", 0.0)
        assert simulated.used(key, size, now) is (key not in held)
        held.pop(key, None)
        needed = sum(held.values()) + size - budget
        if needed > 0:
            for victim in victims(before.values(), needed, budget, 1.0, {}, 0.0, session):
                del held[victim]
        held[key] = size
        assert all(k in simulated for k in held)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.booleans()), max_size=300))
@settings(max_examples=100, deadline=None)
def test_simulated_tiers_stay_within_their_budget(uses: list[tuple[int, int, bool]]) -> None:
    policy_selector = PolicySelector(16)
    for number, size, is_dropped in uses:
        key = f"k{number}"
        if is_dropped:
            policy_selector.forget(key)
        else:
            policy_selector.used(key, size, "t", 0.0)
        for simulated in (policy_selector._by_visits, policy_selector._by_recency):
            held = [*simulated._in_session.items(), *simulated._idle.items()]
            assert sum(size for _, (_, size) in held) == simulated._held_bytes <= 16
            assert len(simulated._heap) <= 2 * len(simulated._idle) + 66
            assert (key in simulated) is False or not is_dropped


def test_the_policy_follows_the_stream_and_changes_are_counted() -> None:
    rng = random.Random(4)
    policy_selector = PolicySelector(32)
    policies = [policy_selector.policy]
    for index in range(6_000):  # bursts
        policy_selector.used(f"b{index // 40 + rng.randrange(20)}", 1, "", 0.0)
    policies.append(policy_selector.policy)
    for index in range(12_000):  # popular and one-time keys
        key = f"p{index}" if index % 3 == 0 else f"z{int(rng.paretovariate(0.9))}"
        policy_selector.used(key, 1, "", 0.0)
    policies.append(policy_selector.policy)
    visits, recency = EvictionPolicy.VISITS, EvictionPolicy.RECENCY
    assert policies == [visits, recency, visits]
    assert policy_selector.changes >= 2
    assert sum(policy_selector.uses_by_policy.values()) == 18_000


def test_a_forgotten_key_is_in_no_ghost() -> None:
    tier: DeviceTier[None] = DeviceTier(4, clock=lambda: 0.0)
    tier.admit("a", 1, lambda: None)[0].release()
    tier.forget("a")
    assert "a" not in tier.policy_selector._by_visits
    assert "a" not in tier.policy_selector._by_recency


#: Short enough for every run; the benchmark has all.
SHORT_STREAMS = ("Zipf 1.0 with sessions", "drift", "bursts", "one-timers in Zipf", "day and night")


@pytest.mark.parametrize("name", SHORT_STREAMS)
def test_no_named_stream_is_worse_than_with_lru(name: str) -> None:
    uses = {**TUNED_ON, **HELD_OUT}[name](32)[:8_000]
    ours, lru, visits = (
        count_misses(uses, 32) for count_misses in (tier_misses, lru_misses, visits_misses)
    )
    assert ours <= 1.02 * lru
    assert ours <= 1.05 * min(lru, visits)
    assert ours >= belady_misses(uses, 32)


def test_misses_do_not_depend_on_the_request_rate() -> None:
    uses = TUNED_ON["Zipf 1.0 with sessions"](32)[:4_000]
    fast = [(at_s / 100, tenant, key) for at_s, tenant, key in uses]
    assert tier_misses(fast, 32) == tier_misses(uses, 32)
    assert SESSION < 1
