"""Metering: reserves the estimated cost of a request and settles the actual one.

Settling replaces the reservation by ledger rows, at most one per image, so it is idempotent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from sqlalchemy import Engine, case, delete, func, insert, select, update
from sqlalchemy.orm import Session

from assets.principal import Principal
from assets.sql.base import alone, rows_changed, table_of
from serving.errors import BudgetExceeded
from serving.tenants.ledger import Ledger, month_of
from serving.tenants.rows import BudgetRow, LedgerRow, ReservationRow

#: Own images to estimate costs from, or else tenants whose newest image is used.
_RECENT, _MOST_TENANTS = 50, 200
_RECENT_ROWS = 20_000

#: Faster than ORM objects.
_BUDGETS = table_of(BudgetRow)
_LEDGER = table_of(LedgerRow)
_RESERVATIONS = table_of(ReservationRow)


@dataclass(frozen=True, slots=True)
class Charge:
    """A request to charge; ``work`` is evaluations × pixels × images."""

    id: str
    principal: Principal
    work: float
    pool: str = ""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The actual cost of a charge."""

    charge: Charge
    gpu_s: float
    images: int
    details: Mapping[str, object] = field(default_factory=dict)
    #: Images that a policy withheld: not charged.
    withheld: int = 0


class Meter:
    """Writes budgets and charges; :attr:`ledger` reads them."""

    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now
        self.ledger = Ledger(engine, now)

    def reserve(self, charge: Charge, expires_s: float) -> None:
        """Reserve the estimated cost for ``expires_s`` seconds at most.

        Raises:
            BudgetExceeded: no room in the month's budget.
        """
        if charge.principal.plan.gpu_s_per_month is None:
            return
        with Session(self._engine) as session, session.begin():
            alone(session, charge.principal.tenant_id)
            self.reserve_in(session, charge, self._now() + expires_s)

    def estimate(self, charge: Charge) -> float | None:
        """Return the engine seconds that the charge reserves: work × the median of recent images;
        None without any."""
        with Session(self._engine) as session:
            rate = self._s_per_work(session, charge.principal.tenant_id, charge.pool)
        return charge.work * rate if rate else None

    def reserve_in(self, session: Session, charge: Charge, expires_at_s: float | None) -> None:
        """Like :meth:`reserve`, in a transaction with the tenant's lock."""
        principal = charge.principal
        limit = principal.plan.gpu_s_per_month
        if limit is None or session.get(ReservationRow, charge.id) is not None:
            return
        budget = _budget(session, principal.tenant_id, month_of(self._now()))
        estimate = charge.work * self._s_per_work(session, principal.tenant_id, charge.pool)
        room = limit - budget.used_gpu_s - budget.reserved_gpu_s
        if room <= 0 or estimate > room:
            raise BudgetExceeded(estimate, max(0.0, room), limit)
        budget.reserved_gpu_s += estimate
        row = ReservationRow(
            id=charge.id,
            tenant_id=principal.tenant_id,
            month=budget.month,
            gpu_s=estimate,
            expires_at_s=expires_at_s,
        )
        session.add(row)

    def _s_per_work(self, session: Session, tenant_id: str, pool: str) -> float:
        """The median of own images, else others' newest; zero without images."""
        newest = (
            select(LedgerRow.quantity, LedgerRow.details)
            .where(LedgerRow.kind == "picture")
            .order_by(LedgerRow.id.desc())
        )
        own = newest.where(LedgerRow.tenant_id == tenant_id).limit(_RECENT)
        if rates := _rates(session.execute(own), pool):
            return median(rates)
        last = session.scalar(select(func.max(LedgerRow.id))) or 0
        recent = (LedgerRow.kind == "picture", LedgerRow.id > last - _RECENT_ROWS)
        of_each = select(func.max(LedgerRow.id)).where(*recent).group_by(LedgerRow.tenant_id)
        others = newest.where(LedgerRow.id.in_(of_each)).limit(_MOST_TENANTS)
        rates = _rates(session.execute(others), pool)
        return median(rates) if rates else 0.0

    def settle(self, spent: Settlement) -> None:
        """Charge a request and release its reservation. Idempotent."""
        with Session(self._engine) as session, session.begin():
            alone(session, spent.charge.principal.tenant_id)
            self.settle_in(session, spent)

    def settle_in(self, session: Session, spent: Settlement) -> None:
        """Like :meth:`settle`, in a transaction with the tenant's lock."""
        charge = spent.charge
        reserved_month = self.release_in(session, charge.id)
        if spent.images == 0:
            return
        first = f"{charge.id}/0"
        charged = select(LedgerRow.id).where(
            LedgerRow.kind == "picture", LedgerRow.reference == first
        )
        if session.scalar(charged) is not None:
            return
        principal = charge.principal
        now = self._now()
        details = {**spent.details, "work": charge.work / (spent.images + spent.withheld)}
        if charge.pool:
            details["pool"] = charge.pool
        images = [
            {
                "at_s": now,
                "tenant_id": principal.tenant_id,
                "member_id": principal.member_id,
                "key_id": principal.key_id,
                "kind": "picture",
                "reference": f"{charge.id}/{index}",
                "quantity": spent.gpu_s / spent.images,
                "details": details,
            }
            for index in range(spent.images)
        ]
        session.execute(insert(_LEDGER), images)
        _add(session, principal.tenant_id, reserved_month or month_of(now), used_gpu_s=spent.gpu_s)

    def attempted(
        self, charge: Charge, request_id: str, engine_s: float, details: Mapping[str, object]
    ) -> None:
        """Charge a request without an image; its reservation stays. Idempotent."""
        with Session(self._engine) as session, session.begin():
            alone(session, charge.principal.tenant_id)
            self.attempted_in(session, charge, request_id, engine_s, details)

    def attempted_in(
        self,
        session: Session,
        charge: Charge,
        request_id: str,
        engine_s: float,
        details: Mapping[str, object],
    ) -> None:
        """Like :meth:`attempted`, in a transaction with the tenant's lock."""
        charged = (LedgerRow.kind == "attempt", LedgerRow.reference == request_id)
        if session.scalar(select(LedgerRow.id).where(*charged)) is not None:
            return
        principal, now = charge.principal, self._now()
        row = {
            "at_s": now,
            "tenant_id": principal.tenant_id,
            "member_id": principal.member_id,
            "key_id": principal.key_id,
            "kind": "attempt",
            "reference": request_id,
            "quantity": engine_s,
            "details": dict(details),
        }
        session.execute(insert(_LEDGER), [row])
        _add(session, principal.tenant_id, month_of(now), used_gpu_s=engine_s)

    def release(self, charge_id: str) -> None:
        """Release a reservation. Idempotent."""
        with Session(self._engine) as session, session.begin():
            row = session.get(ReservationRow, charge_id)
            if row is not None:
                alone(session, row.tenant_id)
                self.release_in(session, charge_id)

    def release_in(self, session: Session, charge_id: str) -> str | None:
        """Release a reservation; return its month, if any."""
        columns = (_RESERVATIONS.c[name] for name in ("tenant_id", "month", "gpu_s"))
        mine = _RESERVATIONS.c.id == charge_id
        reservation = session.execute(select(*columns).where(mine)).one_or_none()
        if reservation is None:
            return None
        tenant_id, month, gpu_s = reservation
        session.execute(delete(_RESERVATIONS).where(mine))
        _add(session, tenant_id, month, reserved_gpu_s=-gpu_s)
        return str(month)

    def release_expired(self) -> int:
        """Release expired reservations; return their number."""
        with Session(self._engine) as session:
            expired = session.scalars(
                select(ReservationRow.id).where(ReservationRow.expires_at_s < self._now())
            ).all()
        for charge_id in expired:
            self.release(charge_id)
        return len(expired)

    def check_integrity(self) -> None:
        """Assert that budgets match rows. For tests, while nothing runs."""
        with Session(self._engine) as session:
            for row in session.scalars(select(BudgetRow)):
                mine = (
                    ReservationRow.tenant_id == row.tenant_id,
                    ReservationRow.month == row.month,
                )
                total = session.scalar(select(func.sum(ReservationRow.gpu_s)).where(*mine)) or 0.0
                assert abs(total - row.reserved_gpu_s) < 1e-6, (total, row.reserved_gpu_s)
            used = select(BudgetRow.tenant_id, func.sum(BudgetRow.used_gpu_s)).group_by(
                BudgetRow.tenant_id
            )
            for tenant_id, total in session.execute(used):
                assert abs(self.ledger.totals(tenant_id)["gpu_s"] - total) < 1e-6 * max(1.0, total)


def _rates(rows: Iterable[Any], pool: str) -> list[float]:
    return [
        row.quantity / row.details["work"]
        for row in rows
        if row.details.get("work") and row.details.get("pool", "") == pool
    ]


def _add(session: Session, tenant_id: str, month: str, **amounts: float) -> None:
    sums = {name: _BUDGETS.c[name] + amount for name, amount in amounts.items()}
    change = (
        update(_BUDGETS)
        .where(_BUDGETS.c.tenant_id == tenant_id, _BUDGETS.c.month == month)
        .values({name: case((sum_ > 0, sum_), else_=0.0) for name, sum_ in sums.items()})
    )
    if rows_changed(session.execute(change)) == 0:
        _budget(session, tenant_id, month)
        session.execute(change)


def _budget(session: Session, tenant_id: str, month: str) -> BudgetRow:
    row = session.get(BudgetRow, (tenant_id, month), populate_existing=True)
    if row is None:
        row = BudgetRow(tenant_id=tenant_id, month=month, used_gpu_s=0.0, reserved_gpu_s=0.0)
        session.add(row)
        session.flush()
    return row
