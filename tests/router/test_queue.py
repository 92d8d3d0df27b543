"""The limit of a tenant's concurrent images."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.queue import Queue
from router.request import QueuedRequest

LIMIT = 4


def queued_request(name: str, at: float, images: int = 1) -> QueuedRequest:
    return QueuedRequest(
        id=name, tenant_id="t", work=1.0, group="g", model=(), extras=(), arrived_s=0.0,
        deadline_s=100.0, position=(False, at), images=images, max_concurrent_images=LIMIT,
    )  # fmt: skip


def grouped(queue: Queue) -> list[str]:
    return [name for group in queue.groups.values() for _, name in group]


def test_held_back_requests_are_admitted_by_position() -> None:
    queue = Queue()
    for name, at in (("now", 0.0), ("late", 9.0), ("early", 1.0)):
        queue.add(queued_request(name, at, images=3))
    assert grouped(queue) == ["now"]
    assert queue.held == 2
    queue.move("late", (False, 0.5))
    taken = queue.take("now")
    queue.release(taken)
    assert grouped(queue) == ["late"]


def test_small_requests_do_not_starve_a_large_one() -> None:
    queue = Queue()
    queue.add(queued_request("small-0", 0.0))
    queue.add(queued_request("large", 1.0, images=LIMIT))
    queue.add(queued_request("small-1", 2.0))
    assert grouped(queue) == ["small-0"]
    queue.release(queue.take("small-0"))
    assert grouped(queue) == ["large"]
    queue.withdraw("large")
    assert grouped(queue) == ["small-1"]


def test_a_requeued_request_keeps_its_position() -> None:
    queue = Queue()
    for at in range(3):
        queue.add(queued_request(str(at), float(at), images=LIMIT))
    lost = queue.take("0")
    queue.add(lost)
    queue.release(lost)
    assert grouped(queue) == ["0"]


@given(
    st.lists(st.tuples(st.sampled_from("ATDWM"), st.integers(0, 7), st.integers(1, 6)), max_size=60)
)
def test_the_limit_holds_and_no_request_is_lost(
    steps: list[tuple[str, int, int]],
) -> None:
    queue = Queue()
    running: dict[str, QueuedRequest] = {}
    for step, number, amount in steps:
        name = str(number)
        if step == "A" and name not in queue and name not in running:
            queue.add(queued_request(name, float(amount), amount))
        elif step == "T" and (names := grouped(queue)):
            name = names[number % len(names)]
            running[name] = queue.take(name)
        elif step == "D" and name in running:
            queue.release(running.pop(name))
        elif step == "W":
            queue.withdraw(name)
        elif step == "M" and name in queue:
            queue.move(name, (False, float(amount)))
        taken = [request.images for request in running.values()]
        taken += [request.images for request in queue if request.id in grouped(queue)]
        assert sum(taken) <= LIMIT or len(taken) == 1
        assert queue.held + len(grouped(queue)) == len(queue)
        assert grouped(queue) or running or not len(queue)
