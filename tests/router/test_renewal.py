"""However replicas come up, die and draw, a renewal never takes more than one at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.renewal import PATIENCE_S, Renewal
from router.scaling import Member, Pool


@given(
    least=st.integers(1, 4),
    spare=st.integers(0, 2),
    running=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_all_are_replaced_and_one_at_most_is_missing(
    least: int, spare: int, running: list[int]
) -> None:
    pool = Pool("a", min=least, max=least + spare)
    members = {f"old-{i}": Member(f"old-{i}", True, running[i]) for i in range(least)}
    renewal = Renewal()
    renewal.begin([*members.values()])
    for count in range(100):
        plan = renewal.step(pool, [*members.values()], float(count))
        assert len(plan.stop) + plan.start <= 1
        for name in plan.stop:
            del members[name]
        for index in range(max(plan.start, pool.min - len(members))):
            members[f"new-{count}-{index}"] = Member(f"new-{count}-{index}", True)
        assert least - 1 <= len(members) <= pool.max
    assert renewal.outdated == frozenset()
    assert all(name.startswith("new") for name in members)
    assert len(members) >= least


def test_nothing_is_taken_away_while_somebody_is_not_up() -> None:
    pool = Pool("a", min=2, max=2)
    old, late = Member("old", True), Member("new", False)
    renewal = Renewal()
    renewal.begin([old])
    assert renewal.step(pool, [old, late], 0.0).stop == ()
    assert renewal.step(pool, [old, late], PATIENCE_S).stop == ()
    assert renewal.step(pool, [old, late], PATIENCE_S + 1).stop == ("new",)
    renewal.give_up()
    assert renewal.step(pool, [old], 0.0).stop == ()
