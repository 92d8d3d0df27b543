"""Metering on every database: single charges, budgets, consistent sums."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from assets.asset import Asset
from assets.content import Blob
from assets.ids import new_asset_id
from assets.plan import Plan
from assets.principal import Principal
from assets.sql.blobs import SqlBlobRecords
from assets.sql.records import SqlAssetRecords
from serving.errors import BudgetExceeded, Refused
from serving.tenants.directory import Directory
from serving.tenants.ledger import month_of
from serving.tenants.meter import Charge, Meter, Settlement
from serving.tenants.rate import RateLimiter
from serving.tenants.storage_meter import StorageMeter


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(database: Engine, clock: Clock) -> Meter:
    return Meter(database, clock)


def limited_tenant(**limits: Any) -> Principal:
    return Principal(new_asset_id(), new_asset_id(), plan=Plan("p", **limits))


def spent(charge: Charge, gpu_s: float = 2.0, images: int = 2) -> Settlement:
    return Settlement(charge, gpu_s, images, {"steps": 20})


def test_repeated_settling_charges_an_image_once(meter: Meter) -> None:
    principal = replace(limited_tenant(), key_id="k", member_id="m")
    charge = Charge(new_asset_id(), principal, 1.0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: meter.settle(spent(charge)), range(8)))
    rows = meter.ledger.usage(principal.tenant_id)
    assert [(r.reference, r.quantity, r.key_id, r.member_id) for r in rows] == [
        (f"{charge.id}/0", 1.0, "k", "m"),
        (f"{charge.id}/1", 1.0, "k", "m"),
    ]
    assert rows[0].details == {"steps": 20, "work": 0.5}
    assert meter.ledger.totals(principal.tenant_id) == {
        "pictures": 2,
        "gpu_s": 2.0,
        "gb_hours": 0.0,
    }
    assert meter.ledger.budget(principal.tenant_id).used_gpu_s == 2.0
    meter.check_integrity()


def test_running_requests_reserve_the_budget(meter: Meter) -> None:
    principal = limited_tenant(gpu_s_per_month=10.0)
    first = Charge(new_asset_id(), principal, 4.0)
    meter.reserve(first, 60.0)
    meter.settle(spent(first, gpu_s=4.0))  # one second per unit of work
    charges = [Charge(new_asset_id(), principal, 2.0) for _ in range(8)]

    def reserve(charge: Charge) -> bool:
        try:
            meter.reserve(charge, 60.0)
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        held = [c for c, ok in zip(charges, pool.map(reserve, charges), strict=True) if ok]
    # Their number depends on the estimate; the sum never exceeds the budget.
    budget = meter.ledger.budget(principal.tenant_id)
    assert 1 <= len(held) < 8
    assert budget.used_gpu_s + budget.reserved_gpu_s <= 10.0
    for charge in held:
        meter.release(charge.id)
        meter.release(charge.id)
    assert meter.ledger.budget(principal.tenant_id).reserved_gpu_s == pytest.approx(0.0)
    assert reserve(Charge(new_asset_id(), principal, 2.0))
    meter.check_integrity()


def test_engine_time_without_an_image_is_charged_once(meter: Meter) -> None:
    principal = limited_tenant(gpu_s_per_month=10.0)
    charge = Charge(new_asset_id(), principal, 4.0)
    meter.reserve(charge, 60.0)
    reference = new_asset_id()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: meter.attempted(charge, reference, 3.0, {"why": "late"}), range(8)))
    assert meter.ledger.budget(principal.tenant_id).used_gpu_s == 3.0
    meter.release(charge.id)
    (row,) = meter.ledger.usage(principal.tenant_id)
    assert (row.kind, row.quantity, row.details) == ("attempt", 3.0, {"why": "late"})
    assert meter.ledger.totals(principal.tenant_id) == {
        "pictures": 0,
        "gpu_s": 3.0,
        "gb_hours": 0.0,
    }
    meter.check_integrity()


def test_estimates_use_the_tenants_own_images_in_that_pool(meter: Meter) -> None:
    principal, other, new = (limited_tenant(gpu_s_per_month=1e6) for _ in range(3))

    def generate(tenant: Principal, s_per_work: float, pool: str = "", times: int = 1) -> None:
        for _ in range(times):
            charge = Charge(new_asset_id(), tenant, 10.0, pool)
            meter.settle(spent(charge, gpu_s=10.0 * s_per_work, images=1))

    def price(tenant: Principal, pool: str = "") -> float:
        charge = Charge(new_asset_id(), tenant, 1.0, pool)
        meter.reserve(charge, 60.0)
        held = meter.ledger.budget(tenant.tenant_id).reserved_gpu_s
        meter.release(charge.id)
        return held

    generate(principal, 1.0, times=5)
    generate(principal, 100.0)  # an outlier
    generate(principal, 7.0, "a100")
    generate(other, 50.0, times=60)
    assert price(principal) == 1.0
    assert price(principal, "a100") == 7.0
    assert price(principal, "h100") == price(new, "h100")
    for tenant in (limited_tenant() for _ in range(20)):
        generate(tenant, 2.0)
    assert price(new) == pytest.approx(2.0)  # each other tenant counts once
    meter.check_integrity()


def test_a_budget_resets_each_month(meter: Meter, clock: Clock) -> None:
    principal = limited_tenant(gpu_s_per_month=3.0)
    charge = Charge(new_asset_id(), principal, 1.0)
    meter.reserve(charge, 60.0)
    meter.settle(spent(charge, gpu_s=5.0))
    with pytest.raises(BudgetExceeded, match="this month's 3 s"):
        meter.reserve(Charge(new_asset_id(), principal, 0.1), 60.0)
    clock.now_s += 31 * 24 * 3600
    meter.reserve(Charge("next-" + charge.id, principal, 0.1), 60.0)
    assert meter.ledger.budget(principal.tenant_id).used_gpu_s == 0.0
    assert meter.ledger.totals(principal.tenant_id, until_s=clock.now_s)["gpu_s"] == 5.0
    # Settled in the next month, it counts in the month of its reservation.
    late = Charge("late-" + charge.id, principal, 0.1)
    meter.reserve(late, 60.0)
    month = month_of(clock.now_s)
    clock.now_s += 31 * 24 * 3600
    meter.settle(spent(late, gpu_s=1.0))
    assert month_of(clock.now_s) != month
    assert meter.ledger.budget(principal.tenant_id).used_gpu_s == 0.0
    meter.check_integrity()


def test_reservations_of_a_dead_gateway_expire(meter: Meter, clock: Clock) -> None:
    principal = limited_tenant(gpu_s_per_month=10.0)
    meter.settle(spent(Charge(new_asset_id(), principal, 1.0), gpu_s=1.0))
    meter.reserve(Charge(new_asset_id(), principal, 3.0), 60.0)
    assert meter.ledger.budget(principal.tenant_id).reserved_gpu_s > 0
    meter.release_expired()
    assert meter.ledger.budget(principal.tenant_id).reserved_gpu_s > 0
    clock.now_s += 61.0
    assert meter.release_expired() >= 1
    assert meter.ledger.budget(principal.tenant_id).reserved_gpu_s == pytest.approx(0.0)
    meter.check_integrity()


def test_budgets_stay_consistent_after_random_operations(meter: Meter, clock: Clock) -> None:
    rng = random.Random(7)
    tenants = [limited_tenant(gpu_s_per_month=40.0), limited_tenant()]
    open_charges: list[Charge] = []
    for index in range(200):
        operation = rng.choice(("reserve", "settle", "release", "repeat", "wait"))
        if operation == "reserve":
            charge = Charge(f"{new_asset_id()}-{index}", rng.choice(tenants), rng.uniform(0.1, 3.0))
            try:
                meter.reserve(charge, rng.uniform(1.0, 100.0))
                open_charges.append(charge)
            except BudgetExceeded:
                pass
        elif open_charges and operation in ("settle", "repeat"):
            charge = rng.choice(open_charges)
            meter.settle(spent(charge, rng.uniform(0.1, 2.0), rng.randint(1, 4)))
            if operation == "settle":
                open_charges.remove(charge)
        elif open_charges and operation == "release":
            meter.release(open_charges.pop().id)
        else:
            clock.now_s += rng.uniform(0.0, 4e5)
            meter.release_expired()
        meter.check_integrity()


@pytest.mark.parametrize("table", ["ledger", "audit"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET at_s = 0", "DELETE FROM {}"])
def test_the_database_rejects_changes_of_ledger_and_audit(
    database: Engine, meter: Meter, table: str, statement: str
) -> None:
    principal = limited_tenant()
    meter.settle(spent(Charge(new_asset_id(), principal, 1.0)))
    Directory(database).add_tenant("t" + new_asset_id()[6:])
    with pytest.raises(DBAPIError, match="append-only"), database.begin() as connection:
        connection.execute(sa.text(statement.format(table)))
    assert len(meter.ledger.usage(principal.tenant_id)) == 2


def test_storage_is_metered_once_per_hour(meter: Meter, database: Engine, clock: Clock) -> None:
    tenant = Directory(database).add_tenant("s" + new_asset_id()[6:])
    blob = Blob(new_asset_id(), "sha", 3_000_000_000)
    asset = Asset(
        new_asset_id(), tenant.id, tenant.name, "a", "lora", 0.0, status="ready",
        parts={"lora": blob},
    )  # fmt: skip
    SqlAssetRecords(database).add(asset)
    hours = StorageMeter(database, SqlBlobRecords(database), clock)
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: hours.charge_hour(), range(4)))
        clock.now_s += 3600.0
    rows = meter.ledger.usage(tenant.id)
    assert [(r.kind, r.quantity) for r in rows] == [("storage", 3.0)] * 3
    assert meter.ledger.totals(tenant.id)["gb_hours"] == 9.0
    assert [r.id for r in meter.ledger.iter_usage(tenant.id)] == [r.id for r in rows]


def test_gateways_share_the_rate_limit(database: Engine, clock: Clock) -> None:
    principal = limited_tenant(requests_per_min=6)
    gateways = [RateLimiter(database, clock) for _ in range(3)]
    quotas = [gateways[index % 3].take(principal) for index in range(6)]
    assert [quota and quota.remaining for quota in quotas] == [5, 4, 3, 2, 1, 0]
    with pytest.raises(Refused) as refused:
        gateways[0].take(principal)
    assert refused.value.status == 429
    assert refused.value.retry_after_s == pytest.approx(10.0)
    clock.now_s += 10.0  # a request's share of the minute
    assert gateways[1].take(principal) is not None
    with pytest.raises(Refused):
        gateways[2].take(principal)
    clock.now_s -= 3600.0  # a clock set back locks out for one window at most
    with pytest.raises(Refused) as refused:
        gateways[2].take(principal)
    assert refused.value.retry_after_s <= 60.0
    clock.now_s += 3600.0 + 60.0
    headers = gateways[0].take(principal).headers()  # type: ignore[union-attr]
    assert headers == {
        "RateLimit-Policy": '"requests";q=6;w=60',
        "RateLimit": '"requests";r=5;t=10',
    }
    assert gateways[0].take(limited_tenant()) is None
