"""Where queued requests stand."""

from __future__ import annotations

import pytest

from assets.content import Blob
from router.cost import Speeds
from router.fleet import Fleet
from router.queue import Queue
from router.request import QueuedRequest
from router.standing import QueueStanding, standings

SPEEDS = Speeds(work_per_s=10.0)


def queued(name: str, position: float, work: float, group: str = "a") -> QueuedRequest:
    blob = Blob(group, "", 1)
    return QueuedRequest(name, "t", work, group, (blob,), (), 0.0, 60.0, position=(False, position))


def test_requests_stand_in_fair_order_whatever_their_checkpoint() -> None:
    queue, fleet = Queue(), Fleet()
    for name, position, group in (("late", 3.0, "a"), ("first", 1.0, "b"), ("second", 2.0, "a")):
        queue.add(queued(name, position, 20.0, group))
    assert standings(queue, fleet, SPEEDS, 0.0)["first"] == QueueStanding(0, None)
    for name in ("r", "s"):
        fleet.add(name, "node", checkpoint_capacity=1, max_in_flight=2)
    found = standings(queue, fleet, SPEEDS, 0.0)
    assert [found[name].position for name in ("first", "second", "late")] == [0, 1, 2]
    times = [found[name].expected_s for name in ("first", "second", "late")]
    assert times == pytest.approx([0.0, 1.0, 2.0])
