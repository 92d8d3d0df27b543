"""The scheduler's decisions: cost, admission, fairness, assignment and prefetching."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from assets.content import Blob
from router.admission import QueueLimits
from router.cost import Speeds, cost_s
from router.fairness import FairClock
from router.policy import SchedulingPolicy
from router.replica import MAX_IN_FLIGHT, Node, Replica
from router.request import QueuedRequest
from router.scheduler import Assignment, Scheduler

SPEEDS = Speeds(bytes_per_s={"host": 10.0, "disk": 5.0, "store": 1.0}, work_per_s=10.0, swap_s=0.0)
BASE, OTHER, LORA = Blob("base", "", 50), Blob("other", "", 50), Blob("lora", "", 20)


def request(name: str = "r", **changes: object) -> QueuedRequest:
    first = QueuedRequest(name, "t", 10.0, "base", (BASE,), (LORA,), 0.0, 1e9)
    return replace(first, **changes)  # type: ignore[arg-type]


def other(name: str = "o", **changes: object) -> QueuedRequest:
    return request(name, group="other", model=(OTHER,), extras=(), **changes)


def new_scheduler(
    *replicas: str, limits: QueueLimits | None = None, checkpoint_capacity: int = 2
) -> Scheduler:
    scheduler = Scheduler(SPEEDS, limits)
    for name in replicas:
        scheduler.fleet.add(
            name,
            f"node-{name}",
            checkpoint_capacity=checkpoint_capacity,
            max_in_flight=MAX_IN_FLIGHT,
        )
    return scheduler


def hold(scheduler: Scheduler, name: str, *keys: str) -> None:
    scheduler.fleet.on_device(name, keys, [key for key in keys if key in ("base", "other")])


def busy(scheduler: Scheduler, name: str, until_s: float, count: int = 1) -> None:
    replica = scheduler.fleet.replicas[name]
    for _ in range(count):
        number = f"busy-{name}-{len(replica.running)}"
        group = next(iter(replica.models), "base")
        model = (BASE,) if group == "base" else (OTHER,)
        sent = request(number, tenant_id="z", group=group, model=model, extras=())
        scheduler.fleet.sent(name, sent, until_s, 1.0)


def arrive(scheduler: Scheduler, *waiting: QueuedRequest, now_s: float = 0.0) -> None:
    for arriving in waiting:
        assert scheduler.arrive(arriving, now_s).refusal is None


def pairs(assignments: list[Assignment]) -> list[tuple[str, str]]:
    return [(a.request.id, a.replica_id) for a in assignments]


def test_cost_is_seconds_by_tier() -> None:
    def on(gpu: set[str], **tiers: set[str]) -> Replica:
        resident = {tier: frozenset(keys) for tier, keys in tiers.items()}
        return Replica("a", Node("n", resident), gpu={"base", *gpu}, checkpoint_capacity=2)

    costs = [
        cost_s(request(), replica, SPEEDS, 0.0)
        for replica in (on({"lora"}), on(set(), host={"lora"}), on(set(), disk={"lora"}), on(set()))
    ]
    assert costs == [1.0, 3.0, 5.0, 21.0]


def test_fetching_overlaps_the_generation_where_there_is_room() -> None:
    def cost(checkpoint_capacity: int, gpu: set[str]) -> float:
        replica = Replica(
            "a", Node("n"), gpu, checkpoint_capacity=checkpoint_capacity, free_at_s=30.0
        )
        replica.running["q"] = other()
        return cost_s(request(), replica, SPEEDS, 0.0)

    assert cost(1, {"base"}) == 31.0  # the LoRA loads during the generation
    assert cost(2, set()) == 71.0  # fetching both takes longer than the generation
    assert cost(1, set()) == 81.0  # the checkpoint loads after the generation


def test_an_open_warm_replica_beats_an_idle_cold_one() -> None:
    for until_s, chosen in ((5.0, "warm"), (200.0, "cold")):
        scheduler = new_scheduler("cold", "warm")
        hold(scheduler, "warm", "base", "lora")
        busy(scheduler, "warm", until_s)
        arrive(scheduler, request())
        # An open warm replica is always preferred for a first request.
        assert pairs(scheduler.assign(0.0)) == [("r", chosen if until_s < 100 else "warm")]


def test_a_request_waits_for_a_full_warm_replica_if_that_is_faster() -> None:
    scheduler = new_scheduler("cold", "warm")
    hold(scheduler, "warm", "base", "lora")
    busy(scheduler, "warm", 5.0, MAX_IN_FLIGHT)
    arrive(scheduler, request())
    assert scheduler.assign(0.0) == []
    scheduler = new_scheduler("cold", "warm")
    hold(scheduler, "warm", "base", "lora")
    busy(scheduler, "warm", 200.0, MAX_IN_FLIGHT)
    arrive(scheduler, request())
    assert pairs(scheduler.assign(0.0)) == [("r", "cold")]


def test_a_long_overdue_replica_gets_no_requests() -> None:
    scheduler = new_scheduler("cold", "warm")
    hold(scheduler, "warm", "base", "lora")
    busy(scheduler, "warm", 10.0, MAX_IN_FLIGHT)
    arrive(scheduler, request(arrived_s=200.0), now_s=200.0)
    assert pairs(scheduler.assign(200.0)) == [("r", "cold")]


def test_a_planned_placement_changes_when_a_better_replica_is_free() -> None:
    scheduler = new_scheduler("near", "far")
    hold(scheduler, "near", "base")
    hold(scheduler, "far", "base", "lora")
    busy(scheduler, "near", 30.0, MAX_IN_FLIGHT)
    busy(scheduler, "far", 20.0, MAX_IN_FLIGHT)
    arrive(scheduler, request())
    assert scheduler.assign(0.0) == []
    scheduler.fleet.ended("near", "busy-near-0", 0.0)
    scheduler.fleet.ended("near", "busy-near-1", 0.0)
    assert pairs(scheduler.assign(0.0)) == [("r", "near")]


def test_a_replica_that_failed_the_request_is_avoided_unless_it_is_the_only_one() -> None:
    scheduler = new_scheduler("a", "b")
    hold(scheduler, "a", "base", "lora")
    arrive(scheduler, request(avoid=frozenset({"a"})))
    assert pairs(scheduler.assign(0.0)) == [("r", "b")]
    scheduler = new_scheduler("a")
    arrive(scheduler, request(avoid=frozenset({"a"})))
    assert pairs(scheduler.assign(0.0)) == [("r", "a")]


def test_a_warm_request_overtakes_until_the_other_is_overdue() -> None:
    for now_s, first in ((0.0, "warm"), (201.0, "cold")):
        scheduler = new_scheduler("a", checkpoint_capacity=1)
        hold(scheduler, "a", "base", "lora")
        busy(scheduler, "a", now_s + 1.0)
        arrive(scheduler, other("cold"), request("warm"))
        scheduler.fleet.replicas["a"].batch_s = 1e9  # its batch is done
        assert pairs(scheduler.assign(now_s))[0][0] == first


def test_a_replica_keeps_its_checkpoint_until_its_batch_is_done() -> None:
    """Otherwise an overdue backlog would swap with every request."""
    scheduler = new_scheduler("a", checkpoint_capacity=1)
    hold(scheduler, "a", "base", "lora")
    busy(scheduler, "a", 300.0)
    arrive(scheduler, other("cold"), request("warm"))
    assert pairs(scheduler.assign(300.0))[0][0] == "warm"


def test_overtaking_is_limited_by_the_fair_share() -> None:
    scheduler = new_scheduler("a", checkpoint_capacity=1)
    hold(scheduler, "a", "base", "lora")
    arrive(scheduler, *(request(f"mine-{index}") for index in range(60)))
    scheduler.assign(0.0)
    arrive(scheduler, other("cold", tenant_id="u"))
    generated = []
    while "cold" not in generated:
        (first, *_) = scheduler.fleet.replicas["a"].running
        scheduler.fleet.ended("a", first, 1.0)
        generated += [name for name, _ in pairs(scheduler.assign(1.0))]
    assert 1 < len(generated) < SchedulingPolicy().lead_s + 5


def test_a_backlog_gets_more_replicas_and_a_few_requests_do_not() -> None:
    for count, holders in ((3, {"warm"}), (400, {"warm", "cold"})):
        scheduler = new_scheduler("cold", "warm", limits=QueueLimits(1000, 1000))
        hold(scheduler, "warm", "base", "lora")
        arrive(scheduler, *(request(f"q{index}", tenant_id=f"t{index}") for index in range(count)))
        assert {replica_id for _, replica_id in pairs(scheduler.assign(0.0))} == holders


def test_a_new_checkpoint_is_loaded_once() -> None:
    """A second request goes to the replica that loads it."""
    scheduler = new_scheduler("a", "b", "c")
    arrive(scheduler, request("first"))
    assert len(scheduler.assign(0.0)) == 1
    arrive(scheduler, request("second"))
    assert {replica_id for _, replica_id in pairs(scheduler.assign(0.0))} == set(
        scheduler.fleet.holders("base")
    )
    assert len(scheduler.fleet.holders("base")) == 1


def test_the_least_valuable_checkpoint_is_displaced() -> None:
    scheduler = new_scheduler("hot", "quiet", checkpoint_capacity=1)
    hold(scheduler, "hot", "base")
    hold(scheduler, "quiet", "third")
    scheduler.fleet.on_device("quiet", ["third"], ["third"])
    for index in range(20):
        arrive(scheduler, request(f"q{index}"), now_s=float(index))
        for assignment in scheduler.assign(float(index)):
            scheduler.ended(assignment, float(index))
    arrive(scheduler, other(arrived_s=20.0), now_s=20.0)
    assert pairs(scheduler.assign(20.0)) == [("o", "quiet")]


def test_tenants_get_work_by_weight() -> None:
    clock = FairClock()
    stamped = [(clock.stamp("a", 10.0, 1.0), "a") for _ in range(30)]
    stamped += [(clock.stamp("b", 10.0, 2.0), "b") for _ in range(30)]
    first = [tenant for _, tenant in sorted(stamped)[:30]]
    assert first.count("b") == 2 * first.count("a")


def test_an_idle_tenant_has_no_credit_and_no_debt() -> None:
    clock = FairClock()
    for _ in range(100):
        clock.served("busy", clock.stamp("busy", 10.0, 1.0), 10.0, 0.0)
    late = clock.stamp("idle", 10.0, 1.0)
    assert late == clock.stamp("busy", 10.0, 1.0)


def test_a_tenant_over_its_share_is_deprioritized_until_its_usage_fades() -> None:
    clock = FairClock(fade_s=100.0)
    for tenant, times in (("loud", 60), ("a", 10), ("b", 10), ("c", 10), ("d", 10)):
        for _ in range(times):
            clock.served(tenant, clock.stamp(tenant, 1.0, 1.0), 1.0, 0.0)

    def is_deprioritized(tenant: str, now_s: float) -> bool:
        return clock.is_over_share(tenant, 1.0, 1.0, 10.0, now_s)

    assert is_deprioritized("loud", 0.0)
    assert not any(is_deprioritized(tenant, 0.0) for tenant in "abcd")
    assert not is_deprioritized("loud", 5_000.0)


def test_a_deprioritized_request_does_not_keep_a_backlog_from_spreading() -> None:
    """The last regular request still overflows."""
    scheduler = new_scheduler("warm", "cold", checkpoint_capacity=1)
    hold(scheduler, "warm", "base", "lora")
    hold(scheduler, "cold", "other")
    busy(scheduler, "warm", 60.0, MAX_IN_FLIGHT)
    arrive(scheduler, *(request(f"q{i}", tenant_id=f"t{i}", work=100.0) for i in range(20)))
    arrive(scheduler, request("loud", tenant_id="loud"))
    scheduler.queue.move("loud", (True, 0.0))
    busy(scheduler, "cold", 1.0)  # closed to the deprioritized request
    assert pairs(scheduler.assign(0.0)) == [("q9", "cold")]


def test_priority_orders_only_the_tenants_own_requests() -> None:
    scheduler = new_scheduler("a")
    hold(scheduler, "a", "base", "lora")
    arrive(scheduler, request("other", tenant_id="u"), request("low"), request("lower"))
    arrive(scheduler, request("high", priority=1))
    order = []
    for _ in range(4):
        scheduler.fleet.replicas["a"].running.clear()
        scheduler.fleet.on_device("a", ["base", "lora"], ["base"])
        order += [name for name, _ in pairs(scheduler.assign(0.0))]
        for name in list(scheduler.fleet.replicas["a"].running):
            scheduler.fleet.ended("a", name, 0.0)
    assert [name for name in order if name != "other"] == ["high", "low", "lower"]


def test_requests_beyond_the_limits_or_the_deadline_are_refused_on_arrival() -> None:
    scheduler = new_scheduler("a", limits=QueueLimits(per_tenant=2, total=3))
    busy(scheduler, "a", 10.0, MAX_IN_FLIGHT)
    arrive(scheduler, request("0"), request("1"))
    refused = scheduler.arrive(request("x"), 0.0).refusal
    assert refused is not None
    assert refused.status == 429
    hurried = scheduler.arrive(request("x", tenant_id="u", deadline_s=1.0), 0.0).refusal
    assert hurried is not None
    assert hurried.status == 503
    assert hurried.retry_after_s >= 1.0
    scheduler = new_scheduler("a", limits=QueueLimits(per_tenant=2, total=5))
    arrive(scheduler, *(request(tenant, tenant_id=tenant) for tenant in "stuvw"))
    for tenant in "stuvw":
        scheduler.queue.move(tenant, (False, 10.0))
    refused = scheduler.arrive(request("x", tenant_id="y"), 0.0).refusal
    assert refused is not None
    assert refused.status == 503
    assert len(scheduler.queue) == 5


def test_a_full_queue_displaces_the_last_request_of_the_tenant_with_the_most() -> None:
    scheduler = new_scheduler("a", limits=QueueLimits(per_tenant=10, total=4))
    busy(scheduler, "a", 10.0, MAX_IN_FLIGHT)
    arrive(scheduler, *(request(str(index)) for index in range(3)), request("u0", tenant_id="u"))
    scheduler.queue.withdraw("2")
    scheduler.requeue(request("2", avoid=frozenset({"a"}), position=(False, 1e9)))  # taken already
    admitted = scheduler.arrive(request("v0", tenant_id="v"), 0.0)
    assert admitted.refusal is None
    assert admitted.displaced is not None
    displaced, reason = admitted.displaced
    assert (displaced.id, reason.status) == ("1", 429)
    assert reason.retry_after_s >= 1.0
    assert {waiting.id for waiting in scheduler.queue} == {"0", "2", "u0", "v0"}
    # Neither tenant displaces the other.
    refused = scheduler.arrive(request("u1", tenant_id="u"), 0.0).refusal
    assert refused is not None
    assert refused.status == 503
    # A regular request displaces a deprioritized one.
    scheduler.queue.move("u0", (True, 5.0))
    admitted = scheduler.arrive(request("w0", tenant_id="w"), 0.0)
    assert admitted.displaced is not None
    assert admitted.displaced[0].id == "u0"


def test_a_request_too_long_for_its_deadline_is_refused_once_speeds_are_measured() -> None:
    scheduler = new_scheduler("a")
    long = request("x", work=300.0, deadline_s=10.0)  # 30 s at the assumed speed
    assert scheduler.arrive(long, 0.0).refusal is None
    scheduler.speeds = replace(scheduler.speeds, is_measured=True)
    refused = scheduler.arrive(replace(long, id="y"), 0.0).refusal
    assert refused is not None
    assert refused.status == 422
    assert "30 s, but the deadline is in 10 s" in refused.reason
    scheduler = new_scheduler("a")  # up to twice is accepted: measurements vary
    scheduler.speeds = replace(scheduler.speeds, is_measured=True)
    assert scheduler.arrive(replace(long, work=190.0), 0.0).refusal is None


def test_an_overrun_is_charged_to_the_tenant() -> None:
    scheduler = new_scheduler("a")
    scheduler.speeds = replace(scheduler.speeds, is_measured=True)
    scheduler.charge_overrun(request("x", tenant_id="t", work=10.0), 5.0)  # at 10 work per second
    arrive(scheduler, *(request(tenant, tenant_id=tenant, work=1.0) for tenant in ("t", "u")))
    positions = {waiting.tenant_id: waiting.position[1] for waiting in scheduler.queue}
    assert positions == {"t": 41.0, "u": 1.0}


def test_a_noisy_tenants_backlog_does_not_refuse_the_others() -> None:
    """The expected wait depends on the tenant's own requests."""
    scheduler = new_scheduler("a", limits=QueueLimits(1000, 1000))
    busy(scheduler, "a", 1.0, MAX_IN_FLIGHT)
    arrive(scheduler, *(request(f"q{index}", tenant_id="loud") for index in range(500)))
    assert scheduler.arrive(request("x", tenant_id="quiet", deadline_s=20.0), 0.0).refusal is None
    assert (
        scheduler.arrive(request("y", tenant_id="loud", deadline_s=20.0), 0.0).refusal is not None
    )


KEYS = st.sampled_from(["base", "other", "third"])
STATES = st.lists(
    st.tuples(st.floats(0, 10), st.integers(0, MAX_IN_FLIGHT), st.sets(KEYS, max_size=2)),
    min_size=1,
    max_size=5,
)


@given(STATES, st.lists(st.tuples(KEYS, st.booleans()), max_size=8), st.floats(0, 300))
def test_assignment_invariants(
    states: list[tuple[float, int, set[str]]], wants: list[tuple[str, bool]], now_s: float
) -> None:
    """Requests are assigned once, replicas keep to their slots, no idle fleet stays idle."""
    scheduler = new_scheduler(*(f"r{index}" for index in range(len(states))))
    for index, (until_s, count, keys) in enumerate(states):
        scheduler.fleet.on_device(f"r{index}", keys, keys)
        busy(scheduler, f"r{index}", until_s, count)
    for index, (key, with_lora) in enumerate(wants):
        model, extras = Blob(key, "", 50), (LORA,) if with_lora else ()
        arrive(scheduler, request(f"q{index}", group=key, model=(model,), extras=extras))
    before = {replica.id: len(replica.running) for replica in scheduler.fleet}
    assignments = scheduler.assign(now_s)
    assert len({a.request.id for a in assignments}) == len(assignments)
    assert len(scheduler.queue) == len(wants) - len(assignments)
    for replica in scheduler.fleet:
        sent = sum(a.replica_id == replica.id for a in assignments)
        assert len(replica.running) == before[replica.id] + sent <= MAX_IN_FLIGHT
    if wants and all(count == 0 for _, count, _ in states):
        assert assignments
    assert scheduler.assign(now_s) == []


def test_a_tenant_generates_no_more_images_at_a_time_than_its_plan_allows() -> None:
    """Its held-back requests do not block others."""
    scheduler = new_scheduler(*"abcd")
    for name in "abcd":
        hold(scheduler, name, "base", "lora")
    mine = [
        request(f"mine-{index}", tenant_id="capped", images=2, max_concurrent_images=4)
        for index in range(4)
    ]
    arrive(scheduler, *mine, request("one", tenant_id="u"))
    first = scheduler.assign(0.0)
    assert sorted(a.request.id for a in first) == ["mine-0", "mine-1", "one"]
    scheduler.ended(next(a for a in first if a.request.id == "mine-0"), 1.0)
    assert [a.request.id for a in scheduler.assign(1.0)] == ["mine-2"]
    scheduler.queue.withdraw("mine-3")
    for assignment in first:
        scheduler.ended(assignment, 2.0)
    arrive(scheduler, request("mine-4", tenant_id="capped", images=2, max_concurrent_images=4))
    assert [a.request.id for a in scheduler.assign(2.0)] == ["mine-4"]


def test_the_assets_of_a_queued_request_are_promoted_to_its_node() -> None:
    scheduler = new_scheduler("a", "b")
    for name in "ab":
        hold(scheduler, name, "base")
        busy(scheduler, name, 5.0, MAX_IN_FLIGHT)
    arrive(scheduler, request())
    assert scheduler.assign(0.0) == []
    promotion = scheduler.promote(request(), 0.0)
    assert promotion is not None
    assert promotion.blobs == (LORA,)
    scheduler.fleet.on_node(f"node-{promotion.replica_id}", {"host": frozenset({"lora"})})
    assert scheduler.promote(request(), 0.0) is None


def test_the_value_of_a_replica_follows_popularity_and_the_number_of_holders() -> None:
    """A shrinking pool stops its least valuable replicas first."""
    scheduler = new_scheduler("popular", "rare", "bare")
    hold(scheduler, "popular", "base")
    hold(scheduler, "rare", "other")
    for index in range(8):
        arrive(scheduler, request(f"q{index}"), now_s=float(index))
        for assignment in scheduler.assign(float(index)):
            scheduler.ended(assignment, float(index))
    arrive(scheduler, other("once", arrived_s=8.0), now_s=8.0)
    for assignment in scheduler.assign(8.0):
        scheduler.ended(assignment, 8.0)
    worth = {name: scheduler.displacement.stop_s(name, 8.0) for name in ("popular", "rare", "bare")}
    assert worth["popular"] > worth["rare"] > worth["bare"] == 0.0
    hold(scheduler, "bare", "base")
    assert (
        scheduler.displacement.stop_s("popular", 8.0)
        == scheduler.displacement.stop_s("bare", 8.0)
        == worth["popular"] / 2
    )
    assert scheduler.displacement.stop_s("popular", 8.0 + 3600.0) < worth["popular"] / 3
