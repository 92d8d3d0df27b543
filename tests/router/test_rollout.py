"""A rollout never leaves more than one replica missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.autoscaling import Scaling, ScalingCandidate
from router.pool import Pool
from router.rollout import PATIENCE_S, Rollout


@given(
    least=st.integers(1, 4),
    spare=st.integers(0, 2),
    running=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_all_replicas_are_replaced_and_at_most_one_is_missing(
    least: int, spare: int, running: list[int]
) -> None:
    pool = Pool("a", min=least, max=least + spare)
    members = {f"old-{i}": ScalingCandidate(f"old-{i}", True, running[i]) for i in range(least)}
    rollout = Rollout()
    rollout.begin([*members.values()])
    for count in range(100):
        plan = rollout.step(pool, [*members.values()], float(count))
        assert len(plan.stop) + plan.start <= 1
        for name in plan.stop:
            del members[name]
        for index in range(max(plan.start, pool.min - len(members))):
            members[f"new-{count}-{index}"] = ScalingCandidate(f"new-{count}-{index}", True)
        assert least - 1 <= len(members) <= pool.max
    assert rollout.outdated == frozenset()
    assert all(name.startswith("new") for name in members)
    assert len(members) >= least


def test_a_spare_that_does_not_start_is_given_up_and_the_rollout_continues() -> None:
    pool = Pool("a", min=1, max=2)
    old, spare = ScalingCandidate("old", True), ScalingCandidate("spare", False)
    rollout = Rollout()
    rollout.begin([old])
    assert rollout.step(pool, [old], 0.0).start == 1
    assert rollout.step(pool, [old, spare], 0.0).stop == ()
    assert rollout.step(pool, [old, spare], PATIENCE_S).stop == ()
    assert rollout.step(pool, [old, spare], PATIENCE_S + 1).stop == ("spare",)
    assert rollout.step(pool, [old], PATIENCE_S + 2).stop == ("old",)


def test_a_new_replica_that_does_not_start_ends_the_rollout() -> None:
    pool = Pool("a", min=2, max=2)
    old, late = ScalingCandidate("old", True), ScalingCandidate("new", False)
    rollout = Rollout()
    rollout.begin([old])
    assert rollout.step(pool, [old, late], 0.0).stop == ()
    assert rollout.step(pool, [old, late], PATIENCE_S + 1) == Scaling()
    assert rollout.outdated == frozenset()
    assert rollout.is_given_up
    assert rollout.step(pool, [old], 0.0).stop == ()


def test_the_start_timeout_is_per_replica() -> None:
    pool = Pool("a", min=2, max=2)
    up, dead = ScalingCandidate("up", True), ScalingCandidate("dead", False)
    rollout = Rollout()
    rollout.begin([up, dead])
    assert rollout.step(pool, [up, dead], 0.0) == Scaling()
    at_s = PATIENCE_S + 1
    assert rollout.step(pool, [up, dead], at_s).stop == ("dead",)
    following = ScalingCandidate("new", False)
    for _ in range(3):
        at_s += 1.0
        assert rollout.step(pool, [up, following], at_s) == Scaling()
    assert rollout.step(pool, [up, ScalingCandidate("new", True)], at_s).stop == ("up",)
