"""Reads the ledger: what a tenant has used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from serving.tenants.rows import BudgetRow, LedgerRow, UsageKind

UNITS: Mapping[str, str] = {"picture": "gpu_s", "attempt": "gpu_s", "storage": "gb_hours"}
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Usage:
    """A ledger row; ``quantity`` in engine seconds or GB-hours (10⁹ bytes)."""

    id: int
    at_s: float
    kind: UsageKind
    reference: str
    quantity: float
    member_id: str
    key_id: str
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Budget:
    """Engine seconds in one calendar month (UTC)."""

    month: str
    used_gpu_s: float
    reserved_gpu_s: float


def month_of(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m")


class Ledger:
    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

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
        """Return ledger rows in order, above id ``after``."""
        query = select(LedgerRow).where(
            LedgerRow.tenant_id == tenant_id, LedgerRow.id > after, LedgerRow.at_s >= since_s
        )
        if until_s is not None:
            query = query.where(LedgerRow.at_s < until_s)
        with Session(self._engine) as session:
            rows = session.scalars(query.order_by(LedgerRow.id).limit(limit))
            return [
                Usage(
                    r.id, r.at_s, r.kind, r.reference, r.quantity, r.member_id, r.key_id,
                    r.details,
                )
                for r in rows
            ]  # fmt: skip

    def iter_usage(
        self, tenant_id: str, since_s: float = 0.0, until_s: float | None = None
    ) -> Iterator[Usage]:
        """Iterate over a span's rows, page by page."""
        after = 0
        while page := self.usage(tenant_id, since_s, until_s, after, _PAGE):
            yield from page
            after = page[-1].id

    def totals(
        self, tenant_id: str, since_s: float = 0.0, until_s: float | None = None
    ) -> Mapping[str, float]:
        """Return the sums of a span."""
        query = (
            select(LedgerRow.kind, func.count(LedgerRow.id), func.sum(LedgerRow.quantity))
            .where(LedgerRow.tenant_id == tenant_id, LedgerRow.at_s >= since_s)
            .group_by(LedgerRow.kind)
        )
        if until_s is not None:
            query = query.where(LedgerRow.at_s < until_s)
        with Session(self._engine) as session:
            sums = {kind: (count, total) for kind, count, total in session.execute(query)}
        images, gpu_s = sums.get("picture", (0, 0.0))
        return {
            "pictures": images,
            "gpu_s": gpu_s + sums.get("attempt", (0, 0.0))[1],
            "gb_hours": sums.get("storage", (0, 0.0))[1],
        }
