"""A tenant whose plan limits how many pictures are drawn at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.queue import Queue
from router.request import QueuedRequest

MOST = 4


def waiting(name: str, at: float, images: int = 1) -> QueuedRequest:
    return QueuedRequest(
        id=name, tenant_id="t", work=1.0, group="g", model=(), extras=(), arrived_s=0.0,
        deadline_s=100.0, position=(False, at), images=images, max_concurrent_images=MOST,
    )  # fmt: skip


def standing(queue: Queue) -> list[str]:
    return [name for group in queue.groups.values() for _, name in group]


def test_what_is_held_back_comes_in_its_order_whenever_it_came() -> None:
    queue = Queue()
    for name, at in (("now", 0.0), ("late", 9.0), ("early", 1.0)):
        queue.add(waiting(name, at, images=3))
    assert standing(queue) == ["now"]
    assert queue.held == 2
    queue.move("late", (False, 0.5))
    taken = queue.take("now")
    queue.release(taken)
    assert standing(queue) == ["late"]


def test_small_ones_do_not_starve_a_large_one() -> None:
    queue = Queue()
    queue.add(waiting("small-0", 0.0))
    queue.add(waiting("large", 1.0, images=MOST))
    queue.add(waiting("small-1", 2.0))
    assert standing(queue) == ["small-0"]
    queue.release(queue.take("small-0"))
    assert standing(queue) == ["large"]
    queue.withdraw("large")
    assert standing(queue) == ["small-1"]


def test_one_that_is_lost_waits_before_those_that_came_after_it() -> None:
    queue = Queue()
    for at in range(3):
        queue.add(waiting(str(at), float(at), images=MOST))
    lost = queue.take("0")
    queue.add(lost)
    queue.release(lost)
    assert standing(queue) == ["0"]


@given(
    st.lists(st.tuples(st.sampled_from("ATDWM"), st.integers(0, 7), st.integers(1, 6)), max_size=60)
)
def test_never_more_than_the_plan_allows_and_nothing_is_forgotten(
    steps: list[tuple[str, int, int]],
) -> None:
    queue = Queue()
    result: dict[str, QueuedRequest] = {}
    for step, which, amount in steps:
        name = str(which)
        if step == "A" and name not in queue and name not in result:
            queue.add(waiting(name, float(amount), amount))
        elif step == "T" and (there := standing(queue)):
            name = there[which % len(there)]
            result[name] = queue.take(name)
        elif step == "D" and name in result:
            queue.release(result.pop(name))
        elif step == "W":
            queue.withdraw(name)
        elif step == "M" and name in queue:
            queue.move(name, (False, float(amount)))
        taken = [request.images for request in result.values()]
        taken += [request.images for request in queue if request.id in standing(queue)]
        assert sum(taken) <= MOST or len(taken) == 1
        assert queue.held + len(standing(queue)) == len(queue)
        assert standing(queue) or result or not len(queue)
