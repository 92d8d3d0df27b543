"""The router's decisions: pure functions of values, so every case can be written down."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from assets.content import Blob
from router.admission import QueueLimits, admit
from router.assign import AGE_BOUND_S, assign
from router.cost import Speeds, cost_s
from router.fairness import FairClock
from router.replica import SLOTS, Replica
from router.request import Waiting

SPEEDS = Speeds(bytes_per_s={"host": 10.0, "disk": 5.0, "store": 1.0}, work_per_s=10.0, swap_s=0.0)
BASE, LORA = Blob("base", "", 0), Blob("lora", "", 20)


def request(name: str = "r", **changes: object) -> Waiting:
    first = Waiting(name, "t", 10.0, (BASE, LORA), 0.0, 1e9, 0.0)
    return replace(first, **changes)  # type: ignore[arg-type]


def replica(name: str, free_at_s: float = 0.0, in_flight: int = 0, **tiers: set[str]) -> Replica:
    return Replica(name, free_at_s, in_flight, {t: frozenset(k) for t, k in tiers.items()})


def test_cost_is_seconds_by_tier() -> None:
    on = {
        "gpu": replica("a", gpu={"lora"}),
        "host": replica("a", host={"lora"}),
        "disk": replica("a", disk={"lora"}),
        "store": replica("a"),
    }
    costs = {tier: cost_s(request(), r, SPEEDS, 0.0) for tier, r in on.items()}
    assert costs == {"gpu": 1.0, "host": 3.0, "disk": 5.0, "store": 21.0}


def test_fetching_overlaps_waiting_for_the_drawing() -> None:
    assert cost_s(request(), replica("a", free_at_s=30.0), SPEEDS, 0.0) == 31.0


def test_warm_and_busy_may_beat_idle_and_cold_and_the_reverse() -> None:
    cold = replica("cold")
    soon = replica("warm", free_at_s=5.0, in_flight=1, gpu={"lora"})
    late = replica("warm", free_at_s=50.0, in_flight=1, gpu={"lora"})
    assert assign([request()], [cold, soon], SPEEDS, 0.0)[0].replica_id == "warm"
    assert assign([request()], [cold, late], SPEEDS, 0.0)[0].replica_id == "cold"


def test_it_waits_for_a_full_warm_replica_when_that_is_quicker() -> None:
    full = replica("warm", free_at_s=5.0, in_flight=SLOTS, gpu={"lora"})
    assert assign([request()], [replica("cold"), full], SPEEDS, 0.0) == []
    later = replace(full, free_at_s=50.0)
    assert assign([request()], [replica("cold"), later], SPEEDS, 0.0)[0].replica_id == "cold"


def test_what_is_long_overdue_attracts_nothing() -> None:
    stuck = replica("warm", free_at_s=-60.0, in_flight=SLOTS, gpu={"lora"})
    assert assign([request()], [replica("cold"), stuck], SPEEDS, 0.0)[0].replica_id == "cold"


def test_where_it_failed_is_avoided_unless_nothing_else_is_left() -> None:
    failed = request(avoid=frozenset({"a"}))
    both = [replica("a", gpu={"lora"}), replica("b")]
    assert assign([failed], both, SPEEDS, 0.0)[0].replica_id == "b"
    assert assign([failed], both[:1], SPEEDS, 0.0)[0].replica_id == "a"


def test_warm_overtakes_until_the_age_bound() -> None:
    cold = request("cold", virtual_finish=1.0, blobs=(Blob("other", "", 20),))
    warm = request("warm", virtual_finish=2.0)
    one_slot = [replica("a", in_flight=SLOTS - 1, gpu={"lora", "base"})]
    assert assign([cold, warm], one_slot, SPEEDS, 0.0)[0].request_id == "warm"
    assert assign([cold, warm], one_slot, SPEEDS, AGE_BOUND_S)[0].request_id == "cold"


def test_tenants_get_work_by_weight() -> None:
    clock = FairClock()
    stamped = [(clock.stamp("a", 10.0, 1.0), "a") for _ in range(30)]
    stamped += [(clock.stamp("b", 10.0, 2.0), "b") for _ in range(30)]
    first = [tenant for _, tenant in sorted(stamped)[:30]]
    assert first.count("b") == 2 * first.count("a")


def test_an_idle_tenant_saves_nothing_up_and_owes_nothing() -> None:
    clock = FairClock()
    for _ in range(100):
        clock.served(clock.stamp("busy", 10.0, 1.0))
    late = clock.stamp("idle", 10.0, 1.0)
    assert late == clock.stamp("busy", 10.0, 1.0)


def test_admission_answers_early() -> None:
    limits = QueueLimits(per_tenant=2, total=3)
    queue = [request(str(i)) for i in range(2)]
    one = [replica("a")]
    refusal = admit(request("x"), queue, one, SPEEDS, limits, 0.0)
    assert refusal is not None
    assert refusal.status == 429
    other = request("x", tenant_id="u")
    assert admit(other, queue, one, SPEEDS, limits, 0.0) is None
    full = [*queue, request("2", tenant_id="v")]
    refusal = admit(other, full, one, SPEEDS, limits, 0.0)
    assert refusal is not None
    assert refusal.status == 503
    hurried = request("x", tenant_id="u", deadline_s=1.0)
    refusal = admit(hurried, queue, one, SPEEDS, limits, 0.0)
    assert refusal is not None
    assert refusal.retry_after_s >= 1.0


KEYS = st.sampled_from(["k1", "k2", "k3"])
REPLICAS = st.lists(
    st.builds(
        lambda free, busy, keys: (free, busy, keys),
        st.floats(0, 10),
        st.integers(0, SLOTS),
        st.sets(KEYS),
    ),
    min_size=1,
    max_size=5,
)


@given(REPLICAS, st.lists(st.sets(KEYS), max_size=8))
def test_laws(states: list[tuple[float, int, set[str]]], wants: list[set[str]]) -> None:
    """Each request once, no replica over its slots, only free ones, the same answer twice."""
    replicas = [replica(f"r{i}", f, b, gpu=k) for i, (f, b, k) in enumerate(states)]
    waiting = [
        request(
            f"q{i}", blobs=tuple(Blob(k, "", 10) for k in sorted(keys)), virtual_finish=float(i)
        )
        for i, keys in enumerate(wants)
    ]
    made = assign(waiting, replicas, SPEEDS, 0.0)
    assert made == assign(waiting, replicas, SPEEDS, 0.0)
    assert len({a.request_id for a in made}) == len(made)
    for r in replicas:
        assert r.in_flight + sum(a.replica_id == r.id for a in made) <= SLOTS
    idle = all(r.in_flight == 0 for r in replicas)
    if idle and waiting:
        assert made


def test_a_tenant_draws_no_more_at_a_time_than_its_plan_allows() -> None:
    """And keeps nobody from what is free."""
    mine = [
        request(f"mine-{index}", tenant_id="capped", pictures=2, pictures_at_once=4)
        for index in range(4)
    ]
    other = request("other", tenant_id="other", virtual_finish=9.0)
    replicas = [replica(name) for name in "abcd"]
    free = assign([*mine, other], replicas, SPEEDS, 0.0)
    assert sorted(a.request_id for a in free) == ["mine-0", "mine-1", "other"]
    busy = assign([*mine, other], replicas, SPEEDS, 0.0, {"capped": 3})
    assert [a.request_id for a in busy] == ["other"]
