"""Autoscaling decisions: typical cases, and invariants for random ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.autoscaling import Scaling, ScalingCandidate, queued, scale
from router.pool import Pool


def test_ten_requests_at_once_start_the_maximum() -> None:
    pool = Pool("a", queue_size=1, min=0, max=4, idle_s=30)
    members: list[ScalingCandidate] = []
    for waiting in range(1, 11):
        members += [
            ScalingCandidate(str(len(members) + i), False)
            for i in range(scale(pool, waiting, members, 0).start)
        ]
    assert len(members) == 4
    assert scale(pool, 10, members, 0) == Scaling()


def test_a_queue_beyond_the_queue_size_starts_a_second_replica() -> None:
    pool = Pool("a", queue_size=2, min=0, max=4)
    assert scale(pool, 1, [], 0) == Scaling(1)
    starting = [ScalingCandidate("0", False)]
    assert scale(pool, 2, starting, 0) == Scaling()
    # The first generates; the second is prepared.
    busy = [ScalingCandidate("0", True, running=2)]
    assert queued(0, busy) == 1
    assert scale(pool, 0, busy, 0) == Scaling()
    assert queued(2, busy) == 3
    assert scale(pool, 2, busy, 0) == Scaling(1)
    assert scale(pool, 2, [*busy, ScalingCandidate("1", False)], 0) == Scaling()


def test_idle_replicas_stop_after_the_idle_time_down_to_the_minimum() -> None:
    pool = Pool("a", min=0, max=4, idle_s=30)
    members = [
        ScalingCandidate("0", True, idle_since_s=0),
        ScalingCandidate("1", True, idle_since_s=20),
    ]
    assert scale(pool, 0, members, 29.9) == Scaling()
    assert scale(pool, 0, members, 30) == Scaling(stop=("0",))
    assert scale(pool, 0, members, 50) == Scaling(stop=("0", "1"))
    assert scale(Pool("a", min=1, max=4, idle_s=30), 0, members, 50) == Scaling(stop=("0",))
    assert (
        scale(pool, 0, [ScalingCandidate("0", True, 1), ScalingCandidate("1", False)], 1e6)
        == Scaling()
    )


def test_draining_replicas_count_against_the_maximum() -> None:
    pool = Pool("a", min=1, max=2)
    assert scale(pool, 9, [], 0, leaving=1) == Scaling(1)
    assert scale(pool, 9, [ScalingCandidate("0", True, 2)], 0, leaving=1) == Scaling()


def test_the_most_valuable_replica_is_kept() -> None:
    pool = Pool("a", min=1, max=4, idle_s=30)
    members = [
        ScalingCandidate("0", True, value_s=1.0),
        ScalingCandidate("1", True, value_s=9.0),
        ScalingCandidate("2", True),
    ]
    assert scale(pool, 0, members, 60) == Scaling(stop=("2", "0"))


def test_the_minimum_is_kept_and_a_lowered_maximum_is_obeyed() -> None:
    assert scale(Pool("a", min=2, max=4), 0, [], 0) == Scaling(2)
    members = [ScalingCandidate(str(i), True, idle_since_s=100) for i in range(3)]
    assert scale(Pool("a", min=0, max=2, idle_s=180), 0, members, 100) == Scaling(stop=("0",))
    assert scale(Pool("a", min=0, max=0), 5, [], 0) == Scaling()


members = st.lists(
    st.builds(
        ScalingCandidate,
        id=st.uuids().map(str),
        is_up=st.booleans(),
        running=st.integers(0, 2),
        idle_since_s=st.floats(0, 100),
        value_s=st.floats(0, 10),
    ),
    max_size=6,
)
pools = st.builds(
    lambda least, more, queue_size, idle_s: Pool("a", "", queue_size, least, least + more, idle_s),
    st.integers(0, 3),
    st.integers(0, 4),
    st.integers(0, 5),
    st.floats(0, 60),
)


@given(pools, st.integers(0, 20), members)
def test_the_bounds_hold_and_no_busy_replica_is_stopped(
    pool: Pool, waiting: int, members: list[ScalingCandidate]
) -> None:
    plan = scale(pool, waiting, members, 100.0)
    by_id = {member.id: member for member in members}
    assert not plan.start or len(members) + plan.start <= pool.max
    assert not plan.stop or len(members) - len(plan.stop) >= pool.min
    assert not (plan.start and plan.stop) or len(members) < pool.min
    for stopped in plan.stop:
        assert by_id[stopped].is_up
        assert not by_id[stopped].running
    if waiting and not members and pool.max:
        assert plan.start  # an empty pool always starts one
