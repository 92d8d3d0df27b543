"""The fleet's index agrees with a full scan after any history."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from assets.content import Blob
from assets.rendezvous import home as home_of
from router.cost import Speeds, cost_s
from router.fleet import Fleet
from router.replica import Replica
from router.request import QueuedRequest

SPEEDS = Speeds({"host": 20.0, "disk": 5.0, "store": 1.0}, work_per_s=10.0, swap_s=0.5)
MODELS = [Blob(f"m{index}", "", 40) for index in range(5)]
EXTRAS = [Blob(f"x{index}", "", size) for index, size in enumerate((3, 8, 8, 20))]
NAMES = [f"r{index}" for index in range(40)]
NODES = ["n0", "n1", "n2"]

requests = st.builds(
    lambda number, model, extras, work: QueuedRequest(
        f"q{number}", "t", work, model.key, (model,), tuple(extras), 0.0, 1e9
    ),
    st.integers(0, 10_000),
    st.sampled_from(MODELS),
    st.lists(st.sampled_from(EXTRAS), unique=True, max_size=3),
    st.floats(1, 50),
)


def displacement_s(replica: Replica, now_s: float) -> float:
    """Higher checkpoint numbers cost more."""
    if len(replica.models) < replica.checkpoint_capacity:
        return 0.0
    return min(float(key[1:]) for key in replica.models)


def scan(
    fleet: Fleet,
    request: QueuedRequest,
    now_s: float,
    *,
    open_only: bool,
    warm_only: bool,
    idle_only: bool,
) -> float | None:
    costs = []
    for replica in fleet:
        warm = request.group in replica.models
        if (open_only and not replica.has_capacity) or (warm_only and not warm):
            continue
        if idle_only and replica.running:
            continue
        cost = cost_s(request, replica, SPEEDS, now_s)
        cost += 0.0 if warm else displacement_s(replica, now_s)
        costs.append(cost + (1e9 if replica.id in request.avoid else 0.0))
    return min(costs, default=None)


class Histories(RuleBasedStateMachine):
    @initialize(count=st.integers(0, 40), slots=st.integers(1, 3))
    def begin(self, count: int, slots: int) -> None:
        self.now_s = 0.0
        self.checkpoint_capacity = slots
        self.fleet = Fleet()
        for name in NAMES[:count]:
            self.fleet.add(
                name, NODES[int(name[1:]) % 3], checkpoint_capacity=slots, max_in_flight=2
            )

    @rule(request=requests, name=st.sampled_from(NAMES), busy_s=st.floats(0, 40))
    def sent(self, request: QueuedRequest, name: str, busy_s: float) -> None:
        if name in self.fleet and self.fleet.replicas[name].has_capacity:
            self.fleet.sent(name, request, self.now_s + busy_s, 1.0)

    @rule(name=st.sampled_from(NAMES), left_s=st.floats(0, 20))
    def ended(self, name: str, left_s: float) -> None:
        if name in self.fleet:
            for request_id in list(self.fleet.replicas[name].running)[:1]:
                self.fleet.ended(name, request_id, self.now_s + left_s)
        self.fleet.ended("nobody", "q", 0.0)

    @rule(
        name=st.sampled_from(NAMES),
        models=st.lists(st.sampled_from(MODELS), unique=True, max_size=3),
        extras=st.lists(st.sampled_from(EXTRAS), unique=True),
    )
    def reported(self, name: str, models: list[Blob], extras: list[Blob]) -> None:
        if name in self.fleet:
            held = [blob.key for blob in models[: self.checkpoint_capacity]]
            self.fleet.on_device(name, {*held, *(blob.key for blob in extras)}, held)

    @rule(
        node=st.sampled_from(NODES),
        host=st.frozensets(st.sampled_from([b.key for b in MODELS + EXTRAS])),
        disk=st.frozensets(st.sampled_from([b.key for b in MODELS + EXTRAS])),
    )
    def node_reported(self, node: str, host: frozenset[str], disk: frozenset[str]) -> None:
        if node in self.fleet.nodes:
            self.fleet.on_node(node, {"host": host, "disk": disk})

    @rule(name=st.sampled_from(NAMES))
    def added_or_removed(self, name: str) -> None:
        if name in self.fleet:
            self.fleet.remove(name)
        else:
            node = NODES[int(name[1:]) % 3]
            self.fleet.add(
                name, node, checkpoint_capacity=self.checkpoint_capacity, max_in_flight=2
            )

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(
        request=requests,
        avoid=st.frozensets(st.sampled_from(NAMES), max_size=3),
        open_only=st.booleans(),
        warm_only=st.booleans(),
        idle_only=st.booleans(),
    )
    def asked(
        self,
        request: QueuedRequest,
        avoid: frozenset[str],
        open_only: bool,
        warm_only: bool,
        idle_only: bool,
    ) -> None:
        request_avoiding = QueuedRequest(
            request.id, "t", request.work, request.group, request.model, request.extras,
            0.0, 1e9, avoid=avoid,
        )  # fmt: skip
        filters = {"open_only": open_only, "warm_only": warm_only, "idle_only": idle_only}
        cheapest = self.fleet.cheapest(
            request_avoiding, SPEEDS, self.now_s, displacement_s, **filters
        )
        best = scan(self.fleet, request_avoiding, self.now_s, **filters)
        assert (None if cheapest is None else round(cheapest[0], 6)) == (
            None if best is None else round(best, 6)
        )
        if cheapest is not None:
            assert not open_only or cheapest[1].has_capacity
            assert not warm_only or request_avoiding.group in cheapest[1].models
            assert not idle_only or not cheapest[1].running

    @invariant()
    def indexes_are_consistent(self) -> None:
        if not hasattr(self, "fleet"):
            return
        assert self.fleet.open_count == sum(r.has_capacity for r in self.fleet)
        for blob in MODELS:
            assert set(self.fleet.holders(blob.key)) == {
                r.id for r in self.fleet if blob.key in r.gpu
            }
            assert self.fleet.has_open(blob.key) == any(
                r.has_capacity and blob.key in r.models for r in self.fleet
            )
        for replica in self.fleet:
            assert len(replica.models) <= replica.checkpoint_capacity
            assert replica.gpu >= replica.models.keys()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_a_key_changes_its_home_only_when_the_home_is_removed() -> None:
    """Removing one of 20 replicas moves about one key in 20."""
    keys = [f"k{index}" for index in range(500)]
    home = {key: home_of(key, NAMES[:20]) for key in keys}
    new_home = {key: home_of(key, NAMES[1:20]) for key in keys}
    moved = [key for key in keys if home[key] != new_home[key]]
    assert all(home[key] == NAMES[0] for key in moved)
    assert 5 <= len(moved) <= 60
