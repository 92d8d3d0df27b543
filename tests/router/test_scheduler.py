"""The router's decisions: every case can be written down, since nothing is read but values."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from assets.content import Blob
from router.admission import QueueLimits
from router.cost import Speeds, cost_s
from router.fairness import FairClock
from router.replica import MAX_IN_FLIGHT, Node, Replica
from router.request import QueuedRequest
from router.scheduler import Assignment, Scheduler, SchedulingPolicy

SPEEDS = Speeds(bytes_per_s={"host": 10.0, "disk": 5.0, "store": 1.0}, work_per_s=10.0, swap_s=0.0)
BASE, OTHER, LORA = Blob("base", "", 50), Blob("other", "", 50), Blob("lora", "", 20)


def request(name: str = "r", **changes: object) -> QueuedRequest:
    first = QueuedRequest(name, "t", 10.0, "base", (BASE,), (LORA,), 0.0, 1e9)
    return replace(first, **changes)  # type: ignore[arg-type]


def other(name: str = "o", **changes: object) -> QueuedRequest:
    return request(name, group="other", model=(OTHER,), extras=(), **changes)


def scheduler(
    *replicas: str, limits: QueueLimits | None = None, checkpoint_capacity: int = 2
) -> Scheduler:
    made = Scheduler(SPEEDS, limits)
    for name in replicas:
        made.fleet.add(
            name,
            f"node-{name}",
            checkpoint_capacity=checkpoint_capacity,
            max_in_flight=MAX_IN_FLIGHT,
        )
    return made


def hold(made: Scheduler, name: str, *keys: str) -> None:
    made.fleet.on_device(name, keys, [key for key in keys if key in ("base", "other")])


def busy(made: Scheduler, name: str, until_s: float, count: int = 1) -> None:
    """With what it holds anyway."""
    replica = made.fleet.replicas[name]
    for _ in range(count):
        number = f"busy-{name}-{len(replica.running)}"
        group = next(iter(replica.models), "base")
        model = (BASE,) if group == "base" else (OTHER,)
        sent = request(number, tenant_id="z", group=group, model=model, extras=())
        made.fleet.sent(name, sent, until_s, 1.0)


def arrive(made: Scheduler, *waiting: QueuedRequest, now_s: float = 0.0) -> None:
    for one in waiting:
        assert made.arrive(one, now_s).refusal is None


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


def test_fetching_overlaps_drawing_where_there_is_room() -> None:
    def cost(checkpoint_capacity: int, gpu: set[str]) -> float:
        result = Replica(
            "a", Node("n"), gpu, checkpoint_capacity=checkpoint_capacity, free_at_s=30.0
        )
        result.running["q"] = other()
        return cost_s(request(), result, SPEEDS, 0.0)

    assert cost(1, {"base"}) == 31.0  # the LoRA is there before the drawing ends
    assert cost(2, set()) == 71.0  # the fetch of both takes longer than the drawing
    assert cost(1, set()) == 81.0  # the checkpoint can only come when the other goes


def test_warm_and_busy_may_beat_idle_and_cold_and_the_reverse() -> None:
    for until_s, chosen in ((5.0, "warm"), (200.0, "cold")):
        made = scheduler("cold", "warm")
        hold(made, "warm", "base", "lora")
        busy(made, "warm", until_s)
        arrive(made, request())
        # A replica with a slot that has the checkpoint is taken at once, if it is not for long.
        made.policy = SchedulingPolicy()
        assert pairs(made.assign(0.0)) == [("r", chosen if until_s < 100 else "warm")]


def test_it_waits_for_a_full_warm_replica_when_that_is_quicker() -> None:
    made = scheduler("cold", "warm")
    hold(made, "warm", "base", "lora")
    busy(made, "warm", 5.0, MAX_IN_FLIGHT)
    arrive(made, request())
    assert made.assign(0.0) == []
    made = scheduler("cold", "warm")
    hold(made, "warm", "base", "lora")
    busy(made, "warm", 200.0, MAX_IN_FLIGHT)
    arrive(made, request())
    assert pairs(made.assign(0.0)) == [("r", "cold")]


def test_what_is_long_overdue_attracts_nothing() -> None:
    made = scheduler("cold", "warm")
    hold(made, "warm", "base", "lora")
    busy(made, "warm", 10.0, MAX_IN_FLIGHT)
    arrive(made, request(arrived_s=200.0), now_s=200.0)
    assert pairs(made.assign(200.0)) == [("r", "cold")]


def test_a_plan_is_made_anew_when_something_better_gets_free() -> None:
    made = scheduler("near", "far")
    hold(made, "near", "base")
    hold(made, "far", "base", "lora")
    busy(made, "near", 30.0, MAX_IN_FLIGHT)
    busy(made, "far", 20.0, MAX_IN_FLIGHT)
    arrive(made, request())
    assert made.assign(0.0) == []
    made.fleet.ended("near", "busy-near-0", 0.0)
    made.fleet.ended("near", "busy-near-1", 0.0)
    assert pairs(made.assign(0.0)) == [("r", "near")]


def test_where_it_failed_is_avoided_unless_nothing_else_is_left() -> None:
    made = scheduler("a", "b")
    hold(made, "a", "base", "lora")
    arrive(made, request(avoid=frozenset({"a"})))
    assert pairs(made.assign(0.0)) == [("r", "b")]
    made = scheduler("a")
    arrive(made, request(avoid=frozenset({"a"})))
    assert pairs(made.assign(0.0)) == [("r", "a")]


def test_warm_overtakes_until_patience_ends() -> None:
    for now_s, first in ((0.0, "warm"), (201.0, "cold")):
        made = scheduler("a", checkpoint_capacity=1)
        hold(made, "a", "base", "lora")
        busy(made, "a", now_s + 1.0)
        arrive(made, other("cold"), request("warm"))
        made.fleet.replicas["a"].batch_s = 1e9  # it has drawn enough with what it has
        assert pairs(made.assign(now_s))[0][0] == first


def test_a_replica_keeps_what_it_loaded_for_its_turn() -> None:
    """Otherwise every request of a crowd would load, once all have waited for long."""
    made = scheduler("a", checkpoint_capacity=1)
    hold(made, "a", "base", "lora")
    busy(made, "a", 300.0)
    arrive(made, other("cold"), request("warm"))
    assert pairs(made.assign(300.0))[0][0] == "warm"


def test_warm_does_not_overtake_far_beyond_its_share() -> None:
    made = scheduler("a", checkpoint_capacity=1)
    hold(made, "a", "base", "lora")
    arrive(made, *(request(f"mine-{index}") for index in range(60)))
    made.assign(0.0)
    arrive(made, other("cold", tenant_id="u"))
    generated = []
    while "cold" not in generated:
        (first, *_) = made.fleet.replicas["a"].running
        made.fleet.ended("a", first, 1.0)
        generated += [name for name, _ in pairs(made.assign(1.0))]
    assert 1 < len(generated) < made.policy.lead_s + 5


def test_a_crowd_gets_more_homes_and_a_single_request_does_not() -> None:
    for count, holders in ((3, {"warm"}), (400, {"warm", "cold"})):
        made = scheduler("cold", "warm", limits=QueueLimits(1000, 1000))
        hold(made, "warm", "base", "lora")
        arrive(made, *(request(f"q{index}", tenant_id=f"t{index}") for index in range(count)))
        assert {replica_id for _, replica_id in pairs(made.assign(0.0))} == holders


def test_no_herd_on_a_new_asset() -> None:
    """The second request for what the first one loads waits for it, and loads nothing."""
    made = scheduler("a", "b", "c")
    arrive(made, request("first"))
    assert len(made.assign(0.0)) == 1
    arrive(made, request("second"))
    assert {replica_id for _, replica_id in pairs(made.assign(0.0))} == set(
        made.fleet.holders("base")
    )
    assert len(made.fleet.holders("base")) == 1


def test_the_least_missed_checkpoint_gives_way() -> None:
    made = scheduler("hot", "quiet", checkpoint_capacity=1)
    hold(made, "hot", "base")
    hold(made, "quiet", "third")
    made.fleet.on_device("quiet", ["third"], ["third"])
    for index in range(20):
        arrive(made, request(f"q{index}"), now_s=float(index))
        for assignment in made.assign(float(index)):
            made.ended(assignment, float(index))
    arrive(made, other(arrived_s=20.0), now_s=20.0)
    assert pairs(made.assign(20.0)) == [("o", "quiet")]


def test_tenants_get_work_by_weight() -> None:
    clock = FairClock()
    stamped = [(clock.stamp("a", 10.0, 1.0), "a") for _ in range(30)]
    stamped += [(clock.stamp("b", 10.0, 2.0), "b") for _ in range(30)]
    first = [tenant for _, tenant in sorted(stamped)[:30]]
    assert first.count("b") == 2 * first.count("a")


def test_an_idle_tenant_saves_nothing_up_and_owes_nothing() -> None:
    clock = FairClock()
    for _ in range(100):
        clock.served("busy", clock.stamp("busy", 10.0, 1.0), 10.0, 0.0)
    late = clock.stamp("idle", 10.0, 1.0)
    assert late == clock.stamp("busy", 10.0, 1.0)


def test_who_had_the_most_lately_steps_back_until_it_has_faded() -> None:
    clock = FairClock(fade_s=100.0)
    for tenant, times in (("loud", 60), ("a", 10), ("b", 10), ("c", 10), ("d", 10)):
        for _ in range(times):
            clock.served(tenant, clock.stamp(tenant, 1.0, 1.0), 1.0, 0.0)

    def is_deprioritized(tenant: str, now_s: float) -> bool:
        return clock.is_over_share(tenant, 1.0, 1.0, 10.0, now_s)

    assert is_deprioritized("loud", 0.0)
    assert not any(is_deprioritized(tenant, 0.0) for tenant in "abcd")
    assert not is_deprioritized("loud", 5_000.0)


def test_a_crowd_is_spread_whoever_steps_back_behind_it() -> None:
    """One that is over its share and waits for the same checkpoint keeps nobody from another
    replica."""
    made = scheduler("warm", "cold", checkpoint_capacity=1)
    hold(made, "warm", "base", "lora")
    hold(made, "cold", "other")
    busy(made, "warm", 60.0, MAX_IN_FLIGHT)
    arrive(made, *(request(f"q{i}", tenant_id=f"t{i}", work=100.0) for i in range(20)))
    arrive(made, request("loud", tenant_id="loud"))
    made.queue.move("loud", (True, 0.0))
    busy(made, "cold", 1.0)  # draws, so that who steps back does not take it
    assert pairs(made.assign(0.0)) == [("q9", "cold")]


def test_priority_is_among_ones_own() -> None:
    made = scheduler("a")
    hold(made, "a", "base", "lora")
    arrive(made, request("other", tenant_id="u"), request("low"), request("lower"))
    arrive(made, request("high", priority=1))
    order = []
    for _ in range(4):
        made.fleet.replicas["a"].running.clear()
        made.fleet.on_device("a", ["base", "lora"], ["base"])
        order += [name for name, _ in pairs(made.assign(0.0))]
        for name in list(made.fleet.replicas["a"].running):
            made.fleet.ended("a", name, 0.0)
    assert [name for name in order if name != "other"] == ["high", "low", "lower"]


def test_admission_answers_early() -> None:
    made = scheduler("a", limits=QueueLimits(per_tenant=2, total=3))
    busy(made, "a", 10.0, MAX_IN_FLIGHT)
    arrive(made, request("0"), request("1"))
    refused = made.arrive(request("x"), 0.0).refusal
    assert refused is not None
    assert refused.status == 429
    hurried = made.arrive(request("x", tenant_id="u", deadline_s=1.0), 0.0).refusal
    assert hurried is not None
    assert hurried.status == 503
    assert hurried.retry_after_s >= 1.0
    made = scheduler("a", limits=QueueLimits(per_tenant=2, total=5))
    arrive(made, *(request(tenant, tenant_id=tenant) for tenant in "stuvw"))
    for tenant in "stuvw":
        made.queue.move(tenant, (False, 10.0))
    refused = made.arrive(request("x", tenant_id="y"), 0.0).refusal
    assert refused is not None
    assert refused.status == 503
    assert len(made.queue) == 5


def test_when_no_place_is_free_the_tenant_with_the_most_gives_up_its_last() -> None:
    made = scheduler("a", limits=QueueLimits(per_tenant=10, total=4))
    busy(made, "a", 10.0, MAX_IN_FLIGHT)
    arrive(made, *(request(str(index)) for index in range(3)), request("u0", tenant_id="u"))
    made.queue.withdraw("2")
    made.requeue(
        request("2", avoid=frozenset({"a"}), position=(False, 1e9))
    )  # has been taken already
    admitted = made.arrive(request("v0", tenant_id="v"), 0.0)
    assert admitted.refusal is None
    assert admitted.displaced is not None
    displaced, reason = admitted.displaced
    assert (displaced.id, reason.status) == ("1", 429)
    assert reason.retry_after_s >= 1.0
    assert {waiting.id for waiting in made.queue} == {"0", "2", "u0", "v0"}
    # Of two each, neither takes the other's.
    refused = made.arrive(request("u1", tenant_id="u"), 0.0).refusal
    assert refused is not None
    assert refused.status == 503
    # Who steps back gives its last place to who does not.
    made.queue.move("u0", (True, 5.0))
    admitted = made.arrive(request("w0", tenant_id="w"), 0.0)
    assert admitted.displaced is not None
    assert admitted.displaced[0].id == "u0"


def test_what_its_own_work_cannot_meet_is_refused_once_that_is_known() -> None:
    made = scheduler("a")
    long = request("x", work=300.0, deadline_s=10.0)  # 30 s at the speed that is assumed
    assert made.arrive(long, 0.0).refusal is None
    made.speeds = replace(made.speeds, is_measured=True)
    refused = made.arrive(replace(long, id="y"), 0.0).refusal
    assert refused is not None
    assert refused.status == 422
    assert "30 s alone, and 10 s" in refused.reason
    made = scheduler("a")  # what is measured varies: less than twice what is allowed is tried
    made.speeds = replace(made.speeds, is_measured=True)
    assert made.arrive(replace(long, work=190.0), 0.0).refusal is None


def test_what_an_attempt_took_beyond_its_work_comes_out_of_the_tenants_share() -> None:
    made = scheduler("a")
    made.speeds = replace(made.speeds, is_measured=True)
    made.charge_overrun(request("x", tenant_id="t", work=10.0), 5.0)  # at 10 of work a second
    arrive(made, *(request(tenant, tenant_id=tenant, work=1.0) for tenant in ("t", "u")))
    positions = {waiting.tenant_id: waiting.position[1] for waiting in made.queue}
    assert positions == {"t": 41.0, "u": 1.0}


def test_a_loud_tenants_queue_does_not_refuse_the_others() -> None:
    """The wait that is expected of a request is its own, not the whole queue's."""
    made = scheduler("a", limits=QueueLimits(1000, 1000))
    busy(made, "a", 1.0, MAX_IN_FLIGHT)
    arrive(made, *(request(f"q{index}", tenant_id="loud") for index in range(500)))
    assert made.arrive(request("x", tenant_id="quiet", deadline_s=20.0), 0.0).refusal is None
    assert made.arrive(request("y", tenant_id="loud", deadline_s=20.0), 0.0).refusal is not None


KEYS = st.sampled_from(["base", "other", "third"])
STATES = st.lists(
    st.tuples(st.floats(0, 10), st.integers(0, MAX_IN_FLIGHT), st.sets(KEYS, max_size=2)),
    min_size=1,
    max_size=5,
)


@given(STATES, st.lists(st.tuples(KEYS, st.booleans()), max_size=8), st.floats(0, 300))
def test_laws(
    states: list[tuple[float, int, set[str]]], wants: list[tuple[str, bool]], now_s: float
) -> None:
    """Each request once, no replica over its slots, what is idle does not stay so."""
    made = scheduler(*(f"r{index}" for index in range(len(states))))
    for index, (until_s, count, keys) in enumerate(states):
        made.fleet.on_device(f"r{index}", keys, keys)
        busy(made, f"r{index}", until_s, count)
    for index, (key, with_lora) in enumerate(wants):
        model, extras = Blob(key, "", 50), (LORA,) if with_lora else ()
        arrive(made, request(f"q{index}", group=key, model=(model,), extras=extras))
    before = {replica.id: len(replica.running) for replica in made.fleet}
    assignments = made.assign(now_s)
    assert len({a.request.id for a in assignments}) == len(assignments)
    assert len(made.queue) == len(wants) - len(assignments)
    for replica in made.fleet:
        sent = sum(a.replica_id == replica.id for a in assignments)
        assert len(replica.running) == before[replica.id] + sent <= MAX_IN_FLIGHT
    if wants and all(count == 0 for _, count, _ in states):
        assert assignments
    assert made.assign(now_s) == []


def test_a_tenant_draws_no_more_at_a_time_than_its_plan_allows() -> None:
    """And keeps nobody from what is free."""
    made = scheduler(*"abcd")
    for name in "abcd":
        hold(made, name, "base", "lora")
    mine = [
        request(f"mine-{index}", tenant_id="capped", images=2, max_concurrent_images=4)
        for index in range(4)
    ]
    arrive(made, *mine, request("one", tenant_id="u"))
    first = made.assign(0.0)
    assert sorted(a.request.id for a in first) == ["mine-0", "mine-1", "one"]
    made.ended(next(a for a in first if a.request.id == "mine-0"), 1.0)
    assert [a.request.id for a in made.assign(1.0)] == ["mine-2"]
    made.queue.withdraw("mine-3")
    for assignment in first:
        made.ended(assignment, 2.0)
    arrive(made, request("mine-4", tenant_id="capped", images=2, max_concurrent_images=4))
    assert [a.request.id for a in made.assign(2.0)] == ["mine-4"]


def test_what_waits_is_promoted_to_where_it_will_be_drawn() -> None:
    made = scheduler("a", "b")
    for name in "ab":
        hold(made, name, "base")
        busy(made, name, 5.0, MAX_IN_FLIGHT)
    arrive(made, request())
    assert made.assign(0.0) == []
    promotion = made.promote(request(), 0.0)
    assert promotion is not None
    assert promotion.blobs == (LORA,)
    made.fleet.on_node(f"node-{promotion.replica_id}", {"host": frozenset({"lora"})})
    assert made.promote(request(), 0.0) is None


def test_what_a_replica_is_worth_follows_demand_and_who_else_has_it() -> None:
    """Of a pool that shrinks the ones with the least to lose go first."""
    made = scheduler("popular", "rare", "bare")
    hold(made, "popular", "base")
    hold(made, "rare", "other")
    for index in range(8):
        arrive(made, request(f"q{index}"), now_s=float(index))
        for assignment in made.assign(float(index)):
            made.ended(assignment, float(index))
    arrive(made, other("once", arrived_s=8.0), now_s=8.0)
    for assignment in made.assign(8.0):
        made.ended(assignment, 8.0)
    worth = {name: made.value_s(name, 8.0) for name in ("popular", "rare", "bare")}
    assert worth["popular"] > worth["rare"] > worth["bare"] == 0.0
    hold(made, "bare", "base")
    assert made.value_s("popular", 8.0) == made.value_s("bare", 8.0) == worth["popular"] / 2
    assert made.value_s("popular", 8.0 + 3600.0) < worth["popular"] / 3
