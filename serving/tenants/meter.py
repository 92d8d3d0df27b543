"""What tenants use: reserved before it is queued, settled once it is there, never twice.

A reservation holds a part of the month's budget while a request is under way. Settling turns
it into rows of the ledger, one a picture; the ledger can hold only one row for a picture, so
whatever is repeated after a crash is charged once. A request that ends without a picture
releases what it held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any, Literal, cast

from sqlalchemy import CursorResult, Engine, Table, case, delete, func, insert, select, update
from sqlalchemy.orm import Session

from assets.library.references import BlobRecords
from assets.principal import Principal
from assets.sql.base import alone
from serving.errors import BudgetExceeded
from serving.tenants.rows import BudgetRow, LedgerRow, ReservationRow, TenantRow

UsageKind = Literal["picture", "attempt", "storage"]
UNITS: Mapping[str, str] = {"picture": "gpu_s", "attempt": "gpu_s", "storage": "gb_hours"}
_HOUR_S = 3600.0
#: How many of the tenant's own images, or of other tenants' newest ones, one each, the cost of the
#: next image is estimated from.
_RECENT, _MOST_TENANTS = 50, 200
#: Rows of the ledger in which other tenants' newest images are looked for.
_RECENT_ROWS = 20_000
_PAGE = 500

#: Settling follows every picture: tables here, and not objects.
_BUDGETS = cast(Table, BudgetRow.__table__)
_LEDGER = cast(Table, LedgerRow.__table__)
_RESERVATIONS = cast(Table, ReservationRow.__table__)


@dataclass(frozen=True, slots=True)
class Charge:
    """A request as the ledger sees it. ``work`` is steps × pixels × images; ``pool`` its GPUs'."""

    id: str
    principal: Principal
    work: float
    pool: str = ""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a charge came to: engine seconds for that many pictures."""

    charge: Charge
    gpu_s: float
    images: int
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """One row of the ledger. ``quantity`` is in UNITS[kind]: engine seconds of a picture,
    gigabytes (10⁹ bytes) held for an hour."""

    id: int
    at_s: float
    kind: UsageKind
    reference: str
    quantity: float
    member_id: str
    key_id: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Budget:
    """Of one calendar month in UTC."""

    month: str
    used_gpu_s: float
    reserved_gpu_s: float


def month_of(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m")


class Meter:
    def __init__(
        self, engine: Engine, blobs: BlobRecords, now: Callable[[], float] = time.time
    ) -> None:
        self._engine = engine
        self._blobs = blobs
        self._now = now

    def reserve(self, charge: Charge, expires_s: float) -> None:
        """Hold what the request will cost, for ``expires_s`` at most.

        Raises:
            BudgetExceeded: the month's budget has no room for it.
        """
        if charge.principal.plan.gpu_s_per_month is None:
            return
        with Session(self._engine) as session, session.begin():
            alone(session, charge.principal.tenant_id)
            self.reserve_in(session, charge, self._now() + expires_s)

    def reserve_in(self, session: Session, charge: Charge, expires_at_s: float | None) -> None:
        """``reserve`` within a transaction that runs alone for the tenant."""
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
        """The median of the tenant's own images in this pool; of a tenant without any the median
        over the others' newest. Zero before the first image."""
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

    def settle(self, spent: Spent) -> None:
        """The pictures are there. Repeating it changes nothing."""
        with Session(self._engine) as session, session.begin():
            alone(session, spent.charge.principal.tenant_id)
            self.settle_in(session, spent)

    def settle_in(self, session: Session, spent: Spent) -> None:
        """``settle`` within a transaction that runs alone for the tenant."""
        charge = spent.charge
        held = self.release_in(session, charge.id)
        first = f"{charge.id}/0"
        known = select(LedgerRow.id).where(
            LedgerRow.kind == "picture", LedgerRow.reference == first
        )
        if session.scalar(known) is not None:
            return
        principal = charge.principal
        now = self._now()
        details = {**spent.details, "work": charge.work / spent.images}
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
        _add(session, principal.tenant_id, held or month_of(now), used_gpu_s=spent.gpu_s)

    def attempted(
        self, charge: Charge, request_id: str, engine_s: float, details: Mapping[str, Any]
    ) -> None:
        """No image came of it, and the engine worked for it all the same. Repeating it changes
        nothing; what is reserved stays so."""
        with Session(self._engine) as session, session.begin():
            alone(session, charge.principal.tenant_id)
            known = (LedgerRow.kind == "attempt", LedgerRow.reference == request_id)
            if session.scalar(select(LedgerRow.id).where(*known)) is not None:
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
        """No picture came of it. Repeating it changes nothing."""
        with Session(self._engine) as session, session.begin():
            row = session.get(ReservationRow, charge_id)
            if row is not None:
                alone(session, row.tenant_id)
                self.release_in(session, charge_id)

    def release_in(self, session: Session, charge_id: str) -> str | None:
        """Give back what the charge holds; the month in which it was held, if it was."""
        columns = (_RESERVATIONS.c[name] for name in ("tenant_id", "month", "gpu_s"))
        mine = _RESERVATIONS.c.id == charge_id
        held = session.execute(select(*columns).where(mine)).one_or_none()
        if held is None:
            return None
        tenant_id, month, gpu_s = held
        session.execute(delete(_RESERVATIONS).where(mine))
        _add(session, tenant_id, month, reserved_gpu_s=-gpu_s)
        return str(month)

    def release_expired(self) -> int:
        """Reservations of requests that ended with their gateway; how many there were."""
        with Session(self._engine) as session:
            gone = session.scalars(
                select(ReservationRow.id).where(ReservationRow.expires_at_s < self._now())
            ).all()
        for charge_id in gone:
            self.release(charge_id)
        return len(gone)

    def meter_storage(self) -> None:
        """A row for each tenant that holds something, once in each hour in which this is called:
        nothing is charged for hours in which the platform stood still."""
        hour = int(self._now() // _HOUR_S)
        with Session(self._engine) as session:
            tenants = session.scalars(select(TenantRow.id)).all()
            references = {f"{tenant}/{hour}": tenant for tenant in tenants}
            done = {
                reference
                for reference in references
                if session.scalar(
                    select(LedgerRow.id).where(
                        LedgerRow.kind == "storage", LedgerRow.reference == reference
                    )
                )
            }
        for reference, tenant in references.items():
            if reference in done:
                continue
            stored = self._blobs.stored_bytes(tenant)
            if stored:
                self._add_storage(tenant, reference, stored)

    def _add_storage(self, tenant_id: str, reference: str, stored_bytes: int) -> None:
        """Whichever gateway is first; the others find it there."""
        with Session(self._engine) as session, session.begin():
            alone(session, tenant_id)
            known = (LedgerRow.kind == "storage", LedgerRow.reference == reference)
            if session.scalar(select(LedgerRow.id).where(*known)) is None:
                session.execute(
                    insert(LedgerRow).values(
                        at_s=self._now(), tenant_id=tenant_id, member_id="", key_id="",
                        kind="storage", reference=reference, quantity=stored_bytes / 1e9,
                        details={"bytes": stored_bytes},
                    )
                )  # fmt: skip

    def budget(self, tenant_id: str) -> Budget:
        month = month_of(self._now())
        with Session(self._engine) as session:
            row = session.get(BudgetRow, (tenant_id, month))
            if row is None:
                return Budget(month, 0.0, 0.0)
            return Budget(month, row.used_gpu_s, row.reserved_gpu_s)

    def usage(
        self,
        tenant_id: str,
        since_s: float = 0.0,
        until_s: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[Usage]:
        """Rows of the ledger in their order; ``after`` is the last id of the page before."""
        wanted = select(LedgerRow).where(
            LedgerRow.tenant_id == tenant_id, LedgerRow.id > after, LedgerRow.at_s >= since_s
        )
        if until_s is not None:
            wanted = wanted.where(LedgerRow.at_s < until_s)
        with Session(self._engine) as session:
            rows = session.scalars(wanted.order_by(LedgerRow.id).limit(limit))
            return [
                Usage(
                    r.id, r.at_s, r.kind, r.reference, r.quantity, r.member_id, r.key_id,  # type: ignore[arg-type]
                    r.details,
                )
                for r in rows
            ]  # fmt: skip

    def every_usage(
        self, tenant_id: str, since_s: float = 0.0, until_s: float | None = None
    ) -> Iterator[Usage]:
        """All of them, a page in memory at a time."""
        after = 0
        while page := self.usage(tenant_id, since_s, until_s, after, _PAGE):
            yield from page
            after = page[-1].id

    def totals(
        self, tenant_id: str, since_s: float = 0.0, until_s: float | None = None
    ) -> Mapping[str, float]:
        """Engine seconds, pictures and gigabyte-hours."""
        wanted = (
            select(LedgerRow.kind, func.count(LedgerRow.id), func.sum(LedgerRow.quantity))
            .where(LedgerRow.tenant_id == tenant_id, LedgerRow.at_s >= since_s)
            .group_by(LedgerRow.kind)
        )
        if until_s is not None:
            wanted = wanted.where(LedgerRow.at_s < until_s)
        with Session(self._engine) as session:
            found = {kind: (count, total) for kind, count, total in session.execute(wanted)}
        images, gpu_s = found.get("picture", (0, 0.0))
        return {
            "pictures": images,
            "gpu_s": gpu_s + found.get("attempt", (0, 0.0))[1],
            "gb_hours": found.get("storage", (0, 0.0))[1],
        }

    def check_integrity(self) -> None:
        """Each month's books agree with the rows that they sum up. For tests, at rest."""
        with Session(self._engine) as session:
            for row in session.scalars(select(BudgetRow)):
                mine = (
                    ReservationRow.tenant_id == row.tenant_id,
                    ReservationRow.month == row.month,
                )
                held = session.scalar(select(func.sum(ReservationRow.gpu_s)).where(*mine)) or 0.0
                assert abs(held - row.reserved_gpu_s) < 1e-6, (held, row.reserved_gpu_s)
            used = select(BudgetRow.tenant_id, func.sum(BudgetRow.used_gpu_s)).group_by(
                BudgetRow.tenant_id
            )
            for tenant_id, total in session.execute(used):
                assert abs(self.totals(tenant_id)["gpu_s"] - total) < 1e-6 * max(1.0, total)


def _rates(rows: Iterable[Any], pool: str) -> list[float]:
    """Engine seconds by work, of a pool's rows."""
    found = ((row.quantity, row.details) for row in rows)
    return [
        quantity / details["work"]
        for quantity, details in found
        if details.get("work") and details.get("pool", "") == pool
    ]


def _add(session: Session, tenant_id: str, month: str, **amounts: float) -> None:
    """To the columns of a month's budget; none of them goes below zero."""
    sums = {name: _BUDGETS.c[name] + amount for name, amount in amounts.items()}
    change = (
        update(_BUDGETS)
        .where(_BUDGETS.c.tenant_id == tenant_id, _BUDGETS.c.month == month)
        .values({name: case((sum_ > 0, sum_), else_=0.0) for name, sum_ in sums.items()})
    )
    if cast("CursorResult[Any]", session.execute(change)).rowcount == 0:
        _budget(session, tenant_id, month)
        session.execute(change)


def _budget(session: Session, tenant_id: str, month: str) -> BudgetRow:
    row = session.get(BudgetRow, (tenant_id, month), populate_existing=True)
    if row is None:
        row = BudgetRow(tenant_id=tenant_id, month=month, used_gpu_s=0.0, reserved_gpu_s=0.0)
        session.add(row)
        session.flush()
    return row
