"""However replicas come up, die and draw, a renewal never takes more than one at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.autoscaling import Pool, Scaling, ScalingCandidate
from router.rollout import PATIENCE_S, Rollout


@given(
    least=st.integers(1, 4),
    spare=st.integers(0, 2),
    running=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_all_are_replaced_and_one_at_most_is_missing(
    least: int, spare: int, running: list[int]
) -> None:
    pool = Pool("a", min=least, max=least + spare)
    members = {f"old-{i}": ScalingCandidate(f"old-{i}", True, running[i]) for i in range(least)}
    renewal = Rollout()
    renewal.begin([*members.values()])
    for count in range(100):
        plan = renewal.step(pool, [*members.values()], float(count))
        assert len(plan.stop) + plan.start <= 1
        for name in plan.stop:
            del members[name]
        for index in range(max(plan.start, pool.min - len(members))):
            members[f"new-{count}-{index}"] = ScalingCandidate(f"new-{count}-{index}", True)
        assert least - 1 <= len(members) <= pool.max
    assert renewal.outdated == frozenset()
    assert all(name.startswith("new") for name in members)
    assert len(members) >= least


def test_a_spare_that_does_not_come_is_given_up_and_the_renewal_goes_on() -> None:
    pool = Pool("a", min=1, max=2)
    old, spare = ScalingCandidate("old", True), ScalingCandidate("spare", False)
    renewal = Rollout()
    renewal.begin([old])
    assert renewal.step(pool, [old], 0.0).start == 1
    assert renewal.step(pool, [old, spare], 0.0).stop == ()
    assert renewal.step(pool, [old, spare], PATIENCE_S).stop == ()
    assert renewal.step(pool, [old, spare], PATIENCE_S + 1).stop == ("spare",)
    assert renewal.step(pool, [old], PATIENCE_S + 2).stop == ("old",)


def test_a_new_one_that_does_not_come_ends_it_and_is_waited_for() -> None:
    pool = Pool("a", min=2, max=2)
    old, late = ScalingCandidate("old", True), ScalingCandidate("new", False)
    renewal = Rollout()
    renewal.begin([old])
    assert renewal.step(pool, [old, late], 0.0).stop == ()
    assert renewal.step(pool, [old, late], PATIENCE_S + 1) == Scaling()
    assert renewal.outdated == frozenset()
    assert renewal.is_given_up
    assert renewal.step(pool, [old], 0.0).stop == ()


def test_each_that_is_late_has_its_own_time() -> None:
    pool = Pool("a", min=2, max=2)
    up, dead = ScalingCandidate("up", True), ScalingCandidate("dead", False)
    renewal = Rollout()
    renewal.begin([up, dead])
    assert renewal.step(pool, [up, dead], 0.0) == Scaling()
    at_s = PATIENCE_S + 1
    assert renewal.step(pool, [up, dead], at_s).stop == ("dead",)
    following = ScalingCandidate("new", False)
    for _ in range(3):
        at_s += 1.0
        assert renewal.step(pool, [up, following], at_s) == Scaling()
    assert renewal.step(pool, [up, ScalingCandidate("new", True)], at_s).stop == ("up",)
