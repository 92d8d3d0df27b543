"""The audit log: an immutable row per administrative action."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from serving.tenants.rows import AuditRow

#: The command line.
OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An entry; ``actor`` is OPERATOR or a key's id, ``subject`` the object."""

    at_s: float
    actor: str
    act: str
    subject: str
    details: Mapping[str, object] = field(default_factory=dict)
    id: int = 0


def note(
    session: Session,
    at_s: float,
    tenant_id: str,
    actor: str,
    act: str,
    subject: str,
    **details: Any,
) -> None:
    """Add an entry in the action's transaction."""
    row = AuditRow(
        at_s=at_s, tenant_id=tenant_id, actor=actor, act=act, subject=subject, details=details
    )
    session.add(row)


class Audit:
    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def note(self, tenant_id: str, actor: str, act: str, subject: str, **details: Any) -> None:
        """Add an entry in its own transaction."""
        with Session(self._engine) as session, session.begin():
            note(session, self._now(), tenant_id, actor, act, subject, **details)

    def acts(
        self, tenant_id: str, limit: int = 100, before: int | None = None
    ) -> Sequence[AuditEntry]:
        """Return entries, newest first, below id ``before``."""
        query = select(AuditRow).where(AuditRow.tenant_id == tenant_id)
        if before is not None:
            query = query.where(AuditRow.id < before)
        with Session(self._engine) as session:
            rows = session.scalars(query.order_by(AuditRow.id.desc()).limit(limit))
            return [AuditEntry(r.at_s, r.actor, r.act, r.subject, r.details, r.id) for r in rows]
