"""Jobs: an accepted asynchronous request, until its result expires.

A gateway claims a job for a while and renews the claim as it works; when it dies,
the claim runs out and another gateway takes the job over. The seeds are fixed when
the job is accepted, so a second attempt draws the same pictures.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import JSON, Engine, Index, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column

from assets.principal import Principal
from assets.sql.base import Base, alone
from serving.errors import Refused
from serving.tenants.meter import Charge, Meter, Spent

JobStatus = Literal["pending", "running", "completed", "failed"]
CLAIM_S = 30.0
KEPT_S = 24 * 3600.0
MAX_UNFINISHED = 256
#: In one query.
_AT_ONCE = 500
_UNFINISHED = ("pending", "running")
FINISHED = ("completed", "failed")


class JobRow(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_claimable", "status", "claimed_until_s"),
        Index("jobs_tenant", "tenant_id", "status", "claimed_until_s"),
        Index("jobs_finished", "finished_at_s"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    tenant_name: Mapped[str]
    weight: Mapped[float]
    status: Mapped[str]
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    claimed_by: Mapped[str | None]
    claimed_until_s: Mapped[float]
    created_at_s: Mapped[float]
    finished_at_s: Mapped[float | None]
    body_digest: Mapped[str | None]
    asked_by: Mapped[dict[str, str] | None] = mapped_column(JSON)
    failures: Mapped[int] = mapped_column(server_default="0", default=0)


@dataclass(frozen=True, slots=True)
class Job:
    """``error`` is ``{"status": int, "body": {…}}`` of a job that failed."""

    id: str
    tenant_id: str
    tenant_name: str
    weight: float
    status: JobStatus
    request: Mapping[str, Any]
    error: Mapping[str, Any] | None
    created_at_s: float
    #: Of the body as it was sent, where the id follows from an idempotency key.
    body_digest: str | None = None
    #: ``key_id``, ``member_id`` and ``role`` of who asked.
    asked_by: Mapping[str, str] = field(default_factory=dict)
    #: How often it was tried in vain, for a reason that may pass.
    failures: int = 0

    @property
    def charge_id(self) -> str:
        """Of this life of the job: an idempotency key that is used again when it is long
        forgotten is another job of the same id."""
        return f"{self.id}@{self.created_at_s:.6f}"


def _job(row: JobRow) -> Job:
    return Job(
        row.id,
        row.tenant_id,
        row.tenant_name,
        row.weight,
        row.status,  # type: ignore[arg-type]
        row.request,
        row.error,
        row.created_at_s,
        row.body_digest,
        row.asked_by or {},
        row.failures,
    )


class Jobs:
    """A job reserves its cost in the transaction that accepts it, and settles or releases it in
    the one that finishes it: so a crash anywhere in between charges nothing twice."""

    def __init__(
        self,
        engine: Engine,
        meter: Meter,
        now: Callable[[], float] = time.time,
        kept_s: float = KEPT_S,
    ) -> None:
        """``kept_s``: how long results are kept, and with them idempotency keys."""
        self._engine = engine
        self._meter = meter
        self._now = now
        self._kept_s = kept_s

    def add(
        self,
        who: Principal,
        request: Mapping[str, Any],
        job_id: str | None = None,
        body_digest: str | None = None,
        work: float = 0.0,
        pool: str = "",
    ) -> Job:
        """A new job of so much work for a pool, or the one that has this id already, as it is.

        An id must be unguessable, as the one made here is: whoever holds it may poll, as
        OctoAI's clients do.

        Raises:
            Refused: MAX_UNFINISHED jobs of this tenant are not finished yet.
            BudgetExceeded: the month's budget has no room for it.
        """
        known = None if job_id is None else self.get(job_id)
        if known is not None:
            return known
        row = JobRow(
            id=job_id or "job_" + secrets.token_urlsafe(24),
            tenant_id=who.tenant_id,
            tenant_name=who.tenant_name,
            weight=who.weight,
            status="pending",
            request=dict(request),
            error=None,
            claimed_by=None,
            claimed_until_s=0.0,
            created_at_s=self._now(),
            finished_at_s=None,
            body_digest=body_digest,
            asked_by={"key_id": who.key_id, "member_id": who.member_id, "role": who.role},
        )
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                alone(session, who.tenant_id)
                mine = (JobRow.tenant_id == who.tenant_id, JobRow.status.in_(_UNFINISHED))
                waiting = session.scalar(select(func.count()).select_from(JobRow).where(*mine))
                if (waiting or 0) >= MAX_UNFINISHED:
                    raise Refused(429, f"{waiting} of your jobs are not finished yet", 10.0)
                session.add(row)
                session.flush()
                self._meter.reserve_in(session, Charge(_job(row).charge_id, who, work, pool), None)
            return _job(row)
        except IntegrityError:  # another arrival with the same key was first
            first = None if job_id is None else self.get(job_id)
            if first is None:
                raise
            return first

    def get(self, job_id: str) -> Job | None:
        with Session(self._engine) as session:
            row = session.get(JobRow, job_id)
            return None if row is None else _job(row)

    def is_old(self, job: Job) -> bool:
        """Whether it was accepted so long ago that results of then are gone."""
        return self._now() - job.created_at_s > self._kept_s

    def claim(self, worker: str) -> Job | None:
        """A job that nobody works on, now this worker's for CLAIM_S seconds: the oldest of a
        tenant with the fewest jobs under way, so that nobody's pile is in front of everybody."""
        now = self._now()
        free = JobRow.claimed_until_s < now
        other = aliased(JobRow)
        under_way = (
            select(func.count())
            .where(
                other.tenant_id == JobRow.tenant_id,
                other.status == "running",
                other.claimed_until_s >= now,
            )
            .scalar_subquery()
        )
        with Session(self._engine) as session, session.begin():
            candidate = session.scalars(
                select(JobRow)
                .where(JobRow.status.in_(_UNFINISHED), free)
                .order_by(under_way, JobRow.created_at_s)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).first()
            if candidate is None:
                return None
            won = session.execute(
                update(JobRow)
                .where(JobRow.id == candidate.id, free)
                .values(status="running", claimed_by=worker, claimed_until_s=now + CLAIM_S)
            )
            if won.rowcount != 1:  # type: ignore[attr-defined]
                return None
            session.refresh(candidate)
            return _job(candidate)

    def renew(self, job_id: str, worker: str) -> bool:
        """False when the claim was lost: stop, another works on it."""
        return self._change(job_id, worker, claimed_until_s=self._now() + CLAIM_S)

    def put_back(self, job_id: str, worker: str, for_s: float, failures: int) -> bool:
        """Let anybody claim the job again, but not before ``for_s`` seconds have passed."""
        values = {"claimed_until_s": self._now() + for_s, "failures": failures}
        return self._change(job_id, worker, status="pending", **values)

    def finish(self, job_id: str, worker: str, spent: Spent) -> bool:
        """The result is stored; what it cost is charged with it. Only the claim's holder can
        finish a job, so it finishes once."""
        with Session(self._engine) as session, session.begin():
            alone(session, spent.charge.principal.tenant_id)
            done = {"status": "completed", "error": None, "finished_at_s": self._now()}
            if not _change(session, job_id, worker, done):
                return False
            self._meter.settle_in(session, spent)
            return True

    def fail(self, job_id: str, worker: str, error: Mapping[str, Any]) -> bool:
        """The request cannot be drawn; ``error`` is its answer, and nothing is charged."""
        failed = {"status": "failed", "error": dict(error), "finished_at_s": self._now()}
        with Session(self._engine) as session, session.begin():
            row = session.get(JobRow, job_id)
            if row is None:
                return False
            alone(session, row.tenant_id)
            charge_id = _job(row).charge_id
            if not _change(session, job_id, worker, failed):
                return False
            self._meter.release_in(session, charge_id)
            return True

    def _change(self, job_id: str, worker: str, **values: Any) -> bool:
        with Session(self._engine) as session, session.begin():
            return _change(session, job_id, worker, values)

    def again(self, job_id: str, who: Principal, work: float, pool: str = "") -> Job | None:
        """A job that failed for no fault of the request's, to be done once more.

        Raises:
            BudgetExceeded: the month's budget has no room for it any more.
        """
        with Session(self._engine) as session, session.begin():
            alone(session, who.tenant_id)
            revived = session.execute(
                update(JobRow)
                .where(JobRow.id == job_id, JobRow.status == "failed")
                .values(
                    status="pending", error=None, claimed_by=None, claimed_until_s=0.0,
                    created_at_s=self._now(), finished_at_s=None, failures=0,
                )
            )  # fmt: skip
            if revived.rowcount:  # type: ignore[attr-defined]
                row = session.get_one(JobRow, job_id, populate_existing=True)
                self._meter.reserve_in(session, Charge(_job(row).charge_id, who, work), None)
        return self.get(job_id)

    def expired(self) -> list[str]:
        """Jobs whose results are old: delete the result, then forget the job."""
        with Session(self._engine) as session:
            old = JobRow.finished_at_s < self._now() - self._kept_s
            return list(session.scalars(select(JobRow.id).where(old)))

    def ended(self, job_ids: Collection[str]) -> dict[str, Job | None]:
        """Of these the ones that are finished; None for those that there are not."""
        found: dict[str, Job | None] = {}
        ids = list(job_ids)
        with Session(self._engine) as session:
            for start in range(0, len(ids), _AT_ONCE):
                some = {*ids[start : start + _AT_ONCE]}
                asked = select(JobRow.id, JobRow.status).where(JobRow.id.in_(some))
                states = {row.id: row.status for row in session.execute(asked)}
                found |= dict.fromkeys(some - states.keys())
                done = [job_id for job_id, status in states.items() if status in FINISHED]
                # Again: one that failed may be done once more since.
                mine = (JobRow.id.in_(done), JobRow.status.in_(FINISHED))
                rows = session.scalars(select(JobRow).where(*mine)) if done else ()
                found |= {row.id: _job(row) for row in rows}
        return found

    def unknown(self, job_ids: Collection[str]) -> set[str]:
        """Those that there are not, or not any more."""
        with Session(self._engine) as session:
            return {job_id for job_id in job_ids if session.get(JobRow, job_id) is None}

    def forget(self, job_id: str) -> None:
        """Unless it has come to life again, as an idempotency key can bring it."""
        old = JobRow.finished_at_s < self._now() - self._kept_s
        with Session(self._engine) as session, session.begin():
            session.execute(delete(JobRow).where(JobRow.id == job_id, old))


def _change(session: Session, job_id: str, worker: str, values: Mapping[str, Any]) -> bool:
    """False when the claim was lost."""
    result = session.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.claimed_by == worker, JobRow.status == "running")
        .values(**values)
    )
    return bool(result.rowcount)  # type: ignore[attr-defined]
