"""The dispatcher: takes requests, queues them by the router's scheduler and answers them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from cachetools import TTLCache

from router.admission import QueueLimits, Refusal
from router.cost import Speeds
from router.estimate import estimate
from router.request import QueuedRequest
from router.scheduler import Scheduler
from serving.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Refused,
)
from serving.generation.contract import (
    GenerationResult,
)
from serving.generation.status import DispatcherStatus, EstimatedFetch, PoolEstimate
from serving.generation.submission import Cancellation, Submission
from serving.pool.announcer import Announcer
from serving.pool.attempts import Attempts, answer, retrieve
from serving.pool.metrics import Outcome, PoolMetrics
from serving.pool.replica_state import ReplicaClient, Ticket, Tickets

_CANCELLED, _CANCELLED_S = 10_000, 120.0
_CANCELLED_TEXT = "the request was cancelled"


class Dispatcher:
    """Queues and assigns the requests of one pool. Bound to one event loop."""

    def __init__(
        self,
        clients: Sequence[ReplicaClient],
        limits: QueueLimits | None = None,
        speeds: Speeds | None = None,
        clock: Callable[[], float] = time.monotonic,
        pool: str = "default",
    ) -> None:
        self._scheduler = Scheduler(speeds, limits)
        self._clock = clock
        self.metrics = PoolMetrics(pool)
        self._tickets = Tickets()
        self.announcer = Announcer(self._tickets, self._scheduler, clock)
        self._attempts = Attempts(
            clients, self._scheduler, self._tickets, self.announcer, self.metrics, clock
        )
        self.roster = self._attempts.roster
        self._announcing: asyncio.Task[None] | None = None
        #: Recently cancelled, in case their request comes later.
        self._cancelled: TTLCache[str, bool] = TTLCache(_CANCELLED, _CANCELLED_S, clock)

    def __repr__(self) -> str:
        states = ", ".join(
            f"{s.client.id}: {'down' if s.report is None else len(s.running)}"
            for s in self.roster.states.values()
        )
        return f"<Dispatcher {len(self._scheduler.queue)} waiting; {states}>"

    def start(self) -> None:
        """Begin to watch the replicas; call on the event loop."""
        self._announcing = asyncio.create_task(self.announcer.run())
        self.roster.start()

    @property
    def waiting(self) -> int:
        """Queued requests that a replica with capacity could start now."""
        return len(self._scheduler.queue) - self._scheduler.queue.held

    async def close(self) -> None:
        tasks = [ticket.task for ticket in self._tickets if ticket.task is not None]
        tasks += self._attempts.background()
        if self._announcing is not None:
            tasks.append(self._announcing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> DispatcherStatus:
        scheduler = self._scheduler
        return DispatcherStatus(
            waiting=len(scheduler.queue),
            held=scheduler.queue.held,
            work_per_s=scheduler.speeds.work_per_s,
            bytes_per_s=scheduler.speeds.bytes_per_s,
            prefetched=scheduler.prefetcher.guessed,
            prefetch_precision=scheduler.prefetcher.precision,
            quarantined=self._attempts.quarantine.count(self._clock()),
            replicas=self.roster.statuses(),
        )

    def estimate(self, submission: Submission) -> PoolEstimate | None:
        """Estimate a request that would come now; None without a replica."""
        scheduler, now = self._scheduler, self._clock()
        request, speeds = submission.request, scheduler.speeds
        queued = _queued(submission, now)
        found = estimate(queued, scheduler.queue, scheduler.fleet, speeds, now)
        if found is None:
            return None
        generate_s = self._attempts.throughput.generate_s(request)
        return PoolEstimate(
            waiting=len(scheduler.queue),
            replica=found.replica,
            wait_s=found.wait_s,
            generate_s=request.work / speeds.work_per_s if generate_s is None else generate_s,
            fetches=tuple(EstimatedFetch(*fetch) for fetch in found.fetches),
            is_measured=generate_s is not None,
        )

    async def submit(self, submission: Submission) -> GenerationResult:
        """Queue a request and await its result; a second submission of an id joins the first.

        Raises:
            Refused: queue full, wait beyond the deadline, or displaced by a smaller backlog.
            InvalidRequest: the request alone exceeds its deadline.
            Quarantined: replicas died with one of its assets.
            DeadlineExceeded: not ready in time.
            Exception: any error of the engine.
        """
        outcome: Outcome = "failed"
        try:
            result = await self._submit(submission)
            outcome = "drawn"
            self.metrics.generated(submission.plan, submission.request, result)
            return result
        except Refused:
            outcome = "refused"
            raise
        except DeadlineExceeded:
            outcome = "late"
            raise
        except (Cancelled, asyncio.CancelledError):
            outcome = "cancelled"
            raise
        finally:
            self.metrics.ended(submission.plan, outcome)

    async def _submit(self, submission: Submission) -> GenerationResult:
        request_id = submission.request.id
        ticket = self._tickets.get(request_id)
        if ticket is None:
            ticket = self._enqueue(submission)
        deadline = ticket.waiting.deadline_s - self._clock()
        ticket.waiters += 1
        try:
            async with asyncio.timeout(deadline):
                return await asyncio.shield(ticket.answer)
        except TimeoutError:
            error = DeadlineExceeded(
                f"not finished within {submission.timeout_s:.0f} s ({ticket.attempts} attempts)",
                ticket.attempts,
            )
            error.engine_s = ticket.engine_s(self._clock())
            self._leave(ticket)
            raise error from None
        except asyncio.CancelledError:
            self._leave(ticket)
            raise

    def _enqueue(self, submission: Submission) -> Ticket:
        now = self._clock()
        if submission.run_id in self._cancelled:
            raise Cancelled(_CANCELLED_TEXT)
        self._attempts.check(submission)
        queued = _queued(submission, now)
        admission = self._scheduler.arrive(queued, now)
        refusal = admission.refusal
        if refusal is not None and refusal.status == 422:
            raise InvalidRequest("steps", refusal.reason)
        if refusal is not None:
            raise _refused(refusal)
        if admission.displaced is not None:
            displaced, reason = admission.displaced
            gone = self._tickets[displaced.id]
            self._tickets.remove(gone)
            answer(gone.answer, _refused(reason))
        ticket = Ticket(submission, queued, asyncio.get_running_loop().create_future())
        ticket.answer.add_done_callback(retrieve)
        self._tickets.add(ticket)
        self._attempts.assign()
        if ticket.task is None:
            self.announcer.announce(ticket)
        self._attempts.prefetch(self._scheduler.promote(queued, now))
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        """Remove one waiter; without waiters the request is cancelled."""
        ticket.waiters -= 1
        if ticket.waiters:
            return
        self._stop(ticket)

    def _stop(self, ticket: Ticket) -> None:
        self._scheduler.queue.withdraw(ticket.waiting.id)
        if ticket.task is None:
            self._tickets.remove(ticket)
        else:
            ticket.lost = False  # no retry
            ticket.task.cancel()

    def cancel(self, cancellation: Cancellation) -> None:
        """Cancel a run of a job. Submitters get Cancelled."""
        self._cancelled[cancellation.run_id] = True
        ticket = self._tickets.of(cancellation.job_id)
        if ticket is None or ticket.submission.run_id != cancellation.run_id:
            return
        error = Cancelled(_CANCELLED_TEXT)
        error.engine_s = ticket.engine_s(self._clock())
        answer(ticket.answer, error)
        self._stop(ticket)


def _queued(submission: Submission, now: float) -> QueuedRequest:
    request = submission.request
    recipe = request.recipe
    return QueuedRequest(
        id=request.id,
        tenant_id=submission.tenant_id,
        work=request.work,
        group=recipe.unet.key,
        model=tuple(dict.fromkeys(blob for _, blob in recipe.components())),
        extras=recipe.extras(),
        arrived_s=now,
        deadline_s=now + submission.timeout_s,
        weight=submission.weight,
        priority=submission.priority,
        images=len(request.seeds),
        max_concurrent_images=submission.max_concurrent_images,
    )


def _refused(refusal: Refusal) -> Refused:
    return Refused(refusal.status, refusal.reason, refusal.retry_after_s)
