"""The job store: asynchronous requests until their results expire.

A gateway claims a job and renews the claim; after a crash it expires and another takes over. Seeds
are fixed at acceptance: a retry generates the same images.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from sqlalchemy import (
    JSON,
    Engine,
    Float,
    Index,
    Select,
    String,
    bindparam,
    delete,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column

from assets.principal import Principal
from assets.sql.base import Base, alone, rows_changed
from serving.errors import Refused
from serving.generation.contract import GenerationRequest
from serving.jobs.failed import JobError
from serving.jobs.notices import notify_in
from serving.jobs.outbox import Outbox
from serving.tenants.meter import Charge, Meter, Settlement

JobStatus = Literal["pending", "running", "completed", "failed", "cancelled"]
CLAIM_S = 30.0
KEPT_S = 24 * 3600.0
MAX_UNFINISHED = 256
_AT_ONCE = 500
_UNFINISHED = ("pending", "running")
FINISHED = ("completed", "failed", "cancelled")


class JobRow(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_claimable", "status", "claimed_until_s"),
        Index("jobs_tenant", "tenant_id", "status", "claimed_until_s"),
        Index("jobs_finished", "finished_at_s"),
        Index("jobs_listed", "tenant_id", "created_at_s", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    tenant_name: Mapped[str]
    weight: Mapped[float]
    status: Mapped[JobStatus] = mapped_column(String)
    request: Mapped[dict[str, object]] = mapped_column(JSON)
    error: Mapped[dict[str, object] | None] = mapped_column(JSON)
    claimed_by: Mapped[str | None]
    claimed_until_s: Mapped[float]
    created_at_s: Mapped[float]
    finished_at_s: Mapped[float | None]
    body_digest: Mapped[str | None]
    asked_by: Mapped[dict[str, str] | None] = mapped_column(JSON)
    failures: Mapped[int] = mapped_column(server_default="0", default=0)


def _claimable() -> Select[JobRow]:
    """Made once: every gateway asks several times a second, and an alias takes long to make."""
    other, now_s = aliased(JobRow), bindparam("now_s", type_=Float)
    under_way = (
        select(func.count())
        .where(
            other.tenant_id == JobRow.tenant_id,
            other.status == "running",
            other.claimed_until_s >= now_s,
        )
        .scalar_subquery()
    )
    return (
        select(JobRow)
        .where(JobRow.status.in_(_UNFINISHED), JobRow.claimed_until_s < now_s)
        .order_by(under_way, JobRow.created_at_s)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


_CLAIMABLE = _claimable()


@dataclass(frozen=True, slots=True)
class Job:
    """A stored request."""

    id: str
    tenant_id: str
    tenant_name: str
    weight: float
    status: JobStatus
    stored_request: Mapping[str, Any]
    error: JobError | None
    created_at_s: float
    #: Of the request body, if the id comes from an idempotency key.
    body_digest: str | None = None
    #: ``key_id``, ``member_id`` and ``role``.
    asked_by: Mapping[str, str] = field(default_factory=dict)
    #: Attempts with a transient error.
    failures: int = 0
    finished_at_s: float | None = None

    @property
    def request(self) -> GenerationRequest:
        """Raises msgspec.ValidationError: a newer version stored it."""
        return msgspec.convert(self.stored_request, GenerationRequest)

    @property
    def pool(self) -> str:
        return str(self.stored_request.get("gpu", ""))

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    @property
    def charge_id(self) -> str:
        """Includes the time: after its expiry, an idempotency key makes the same job id again."""
        return f"{self.id}@{self.created_at_s:.6f}"


def _job(row: JobRow) -> Job:
    return Job(
        row.id,
        row.tenant_id,
        row.tenant_name,
        row.weight,
        row.status,
        row.request,
        None if row.error is None else msgspec.convert(row.error, JobError),
        row.created_at_s,
        row.body_digest,
        row.asked_by or {},
        row.failures,
        row.finished_at_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Jobs of an organisation, newest first. Times in epoch seconds; ``after``: the last page's
    last job, which may be gone."""

    statuses: Sequence[JobStatus] = ()
    since_s: float = 0.0
    until_s: float | None = None
    #: Pools; empty: the default.
    pools: Collection[str] = ()
    #: ``member_id`` or ``key_id`` of who asked; None: anyone.
    asked_by: tuple[str, str] | None = None
    after: tuple[float, str] | None = None
    limit: int = 100


class JobStore:
    """The jobs in the database.

    One transaction accepts a job and reserves its cost, another finishes and settles it: a crash
    never charges twice.
    """

    def __init__(
        self,
        engine: Engine,
        meter: Meter,
        now: Callable[[], float] = time.time,
        kept_s: float = KEPT_S,
    ) -> None:
        self.outbox = Outbox(engine, now)
        self._engine = engine
        self._meter = meter
        self._now = now
        self._kept_s = kept_s

    def add(
        self,
        principal: Principal,
        request: GenerationRequest,
        job_id: str | None = None,
        body_digest: str | None = None,
        work: float = 0.0,
        pool: str = "",
    ) -> Job:
        """Add a job, or return the existing one with this id unchanged.

        ``job_id`` must be unguessable (polling needs no key); None generates one.

        Raises:
            Refused: the tenant has MAX_UNFINISHED unfinished jobs.
            BudgetExceeded: the month's budget has no room.
        """
        known = None if job_id is None else self.get(job_id)
        if known is not None:
            return known
        row = JobRow(
            id=job_id or "job_" + secrets.token_urlsafe(24),
            tenant_id=principal.tenant_id,
            tenant_name=principal.tenant_name,
            weight=principal.weight,
            status="pending",
            request=msgspec.to_builtins(request),
            error=None,
            claimed_by=None,
            claimed_until_s=0.0,
            created_at_s=self._now(),
            finished_at_s=None,
            body_digest=body_digest,
            asked_by={
                "key_id": principal.key_id,
                "member_id": principal.member_id,
                "role": principal.role,
            },
        )
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                alone(session, principal.tenant_id)
                mine = (JobRow.tenant_id == principal.tenant_id, JobRow.status.in_(_UNFINISHED))
                unfinished = session.scalar(select(func.count()).select_from(JobRow).where(*mine))
                if (unfinished or 0) >= MAX_UNFINISHED:
                    raise Refused(
                        429, f"you have {unfinished} unfinished jobs; wait for some to finish", 10.0
                    )
                session.add(row)
                session.flush()
                charge = Charge(_job(row).charge_id, principal, work, pool)
                self._meter.reserve_in(session, charge, None)
                notify_in(session, "accepted")
            return _job(row)
        except IntegrityError:  # a concurrent request was first
            first = None if job_id is None else self.get(job_id)
            if first is None:
                raise
            return first

    def get(self, job_id: str) -> Job | None:
        with Session(self._engine) as session:
            row = session.get(JobRow, job_id)
            return None if row is None else _job(row)

    def is_old(self, job: Job) -> bool:
        """Whether the job is older than results are kept."""
        return self._now() - job.created_at_s > self._kept_s

    def claim(self, worker: str) -> Job | None:
        """Claim a free job for CLAIM_S seconds, if there is one.

        The oldest of a tenant with the fewest running: a backlog must not delay others.
        """
        now = self._now()
        free = JobRow.claimed_until_s < now
        with Session(self._engine) as session, session.begin():
            candidate = session.scalars(_CLAIMABLE, {"now_s": now}).first()
            if candidate is None:
                return None
            won = session.execute(
                update(JobRow)
                .where(JobRow.id == candidate.id, free, JobRow.status.in_(_UNFINISHED))
                .values(status="running", claimed_by=worker, claimed_until_s=now + CLAIM_S)
            )
            if rows_changed(won) != 1:
                return None
            session.refresh(candidate)
            return _job(candidate)

    def renew(self, job_id: str, worker: str) -> bool:
        """Extend the claim; False if it was lost."""
        return self._change(job_id, worker, claimed_until_s=self._now() + CLAIM_S)

    def put_back(self, job_id: str, worker: str, for_s: float, failures: int) -> bool:
        """Release the claim; the job is free in ``for_s`` seconds."""
        values = {"claimed_until_s": self._now() + for_s, "failures": failures}
        return self._change(job_id, worker, status="pending", **values)

    def finish(self, job_id: str, worker: str, spent: Settlement) -> bool:
        """Complete a job whose result is stored, and settle it; False if the claim was lost."""
        with Session(self._engine) as session, session.begin():
            tenant_id = spent.charge.principal.tenant_id
            alone(session, tenant_id)
            done = {"status": "completed", "error": None, "finished_at_s": self._now()}
            if not _change(session, job_id, worker, done):
                if session.scalar(select(JobRow.status).where(JobRow.id == job_id)) == "cancelled":
                    # Its engine had finished.
                    charge, details = spent.charge, spent.details
                    self._meter.attempted_in(session, charge, charge.id, spent.gpu_s, details)
                return False
            self._meter.settle_in(session, spent)
            self._ended_in(session, job_id, tenant_id, "completed")
            return True

    def fail(self, job_id: str, worker: str, error: JobError) -> bool:
        """Store the error; nothing is charged."""
        failed = {
            "status": "failed",
            "error": msgspec.to_builtins(error),
            "finished_at_s": self._now(),
        }
        with Session(self._engine) as session, session.begin():
            row = session.get(JobRow, job_id)
            if row is None:
                return False
            alone(session, row.tenant_id)
            charge_id = _job(row).charge_id
            if not _change(session, job_id, worker, failed):
                return False
            self._meter.release_in(session, charge_id)
            self._ended_in(session, job_id, row.tenant_id, "failed")
            return True

    def cancel(self, job_id: str, error: JobError) -> Job | None:
        """Cancel an unfinished job and return it; nothing is charged here. None: it had ended."""
        with Session(self._engine) as session, session.begin():
            row = session.get(JobRow, job_id)
            if row is None:
                return None
            alone(session, row.tenant_id)
            session.refresh(row)  # it may have been started again
            cancelled = session.execute(
                update(JobRow)
                .where(JobRow.id == job_id, JobRow.status.in_(_UNFINISHED))
                .values(
                    status="cancelled",
                    error=msgspec.to_builtins(error),
                    claimed_by=None,
                    finished_at_s=self._now(),
                )
            )
            if not rows_changed(cancelled):
                return None
            session.refresh(row)
            self._meter.release_in(session, _job(row).charge_id)
            self._ended_in(session, job_id, row.tenant_id, "cancelled")
            return _job(row)

    def _ended_in(self, session: Session, job_id: str, tenant_id: str, status: JobStatus) -> None:
        self.outbox.add_in(session, job_id, tenant_id, status)
        notify_in(session, "ended")

    def page(self, tenant_id: str, query: JobQuery) -> list[Job]:
        """Return jobs; with one job more than ``limit``, if there are more."""
        wanted = select(JobRow).where(
            JobRow.tenant_id == tenant_id, JobRow.created_at_s >= query.since_s
        )
        if query.statuses:
            wanted = wanted.where(JobRow.status.in_(query.statuses))
        if query.until_s is not None:
            wanted = wanted.where(JobRow.created_at_s < query.until_s)
        if query.pools:
            wanted = wanted.where(JobRow.request["gpu"].as_string().in_(query.pools))
        if query.asked_by is not None:
            name, value = query.asked_by
            wanted = wanted.where(JobRow.asked_by[name].as_string() == value)
        if query.after is not None:
            place = tuple_(JobRow.created_at_s, JobRow.id)
            wanted = wanted.where(place < tuple_(*query.after))
        newest = wanted.order_by(JobRow.created_at_s.desc(), JobRow.id.desc())
        with Session(self._engine) as session:
            return [_job(row) for row in session.scalars(newest.limit(query.limit + 1))]

    def _change(self, job_id: str, worker: str, **values: Any) -> bool:
        with Session(self._engine) as session, session.begin():
            return _change(session, job_id, worker, values)

    def again(self, job_id: str, principal: Principal, work: float, pool: str = "") -> Job | None:
        """Restart a job that failed for no fault of the request.

        Raises:
            BudgetExceeded: the month's budget has no room.
        """
        with Session(self._engine) as session, session.begin():
            alone(session, principal.tenant_id)
            revived = session.execute(
                update(JobRow)
                .where(JobRow.id == job_id, JobRow.status.in_(("failed", "cancelled")))
                .values(
                    status="pending", error=None, claimed_by=None, claimed_until_s=0.0,
                    created_at_s=self._now(), finished_at_s=None, failures=0,
                )
            )  # fmt: skip
            if rows_changed(revived):
                row = session.get_one(JobRow, job_id, populate_existing=True)
                charge = Charge(_job(row).charge_id, principal, work, pool)
                self._meter.reserve_in(session, charge, None)
                notify_in(session, "accepted")
        return self.get(job_id)

    def expired(self) -> list[str]:
        with Session(self._engine) as session:
            old = JobRow.finished_at_s < self._now() - self._kept_s
            return list(session.scalars(select(JobRow.id).where(old)))

    def ended(self, job_ids: Collection[str]) -> dict[str, Job | None]:
        """Return the finished ones; None for unknown ids."""
        ended: dict[str, Job | None] = {}
        ids = list(job_ids)
        with Session(self._engine) as session:
            for start in range(0, len(ids), _AT_ONCE):
                batch = {*ids[start : start + _AT_ONCE]}
                query = select(JobRow.id, JobRow.status).where(JobRow.id.in_(batch))
                statuses = {row.id: row.status for row in session.execute(query)}
                ended |= dict.fromkeys(batch - statuses.keys())
                done = [job_id for job_id, status in statuses.items() if status in FINISHED]
                # A failed job may have been restarted.
                still_done = (JobRow.id.in_(done), JobRow.status.in_(FINISHED))
                rows = session.scalars(select(JobRow).where(*still_done)) if done else ()
                ended |= {row.id: _job(row) for row in rows}
        return ended

    def unknown(self, job_ids: Collection[str]) -> set[str]:
        with Session(self._engine) as session:
            return {job_id for job_id in job_ids if session.get(JobRow, job_id) is None}

    def forget(self, job_id: str) -> None:
        """Delete an expired job, unless it was started again."""
        old = JobRow.finished_at_s < self._now() - self._kept_s
        with Session(self._engine) as session, session.begin():
            session.execute(delete(JobRow).where(JobRow.id == job_id, old))


def _change(session: Session, job_id: str, worker: str, values: Mapping[str, object]) -> bool:
    """False if the claim was lost."""
    result = session.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.claimed_by == worker, JobRow.status == "running")
        .values(**values)
    )
    return bool(rows_changed(result))
