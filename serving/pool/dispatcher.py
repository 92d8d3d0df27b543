"""The dispatcher: the async shell around the router's scheduler, on one event loop.

``_assign`` runs after every change and starts a task per assignment; ``_ended`` frees its capacity,
however the attempt ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from cachetools import TTLCache
from msgspec import structs

from assets.errors import AssetError
from orchestrator.errors import TierError
from router.admission import QueueLimits, Refusal
from router.autoscaling import ScalingCandidate
from router.cost import Speeds
from router.crash_quarantine import CrashQuarantine
from router.replica import MAX_IN_FLIGHT
from router.request import QueuedRequest
from router.scheduler import Assignment, Promotion, Scheduler
from serving.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NotFinite,
    Quarantined,
    Refused,
    ReplicaDied,
    ReplicaLost,
    ServingError,
    UnexpectedEngineError,
)
from serving.generation.contract import (
    REPORT_TIMEOUT_S,
    WARM_TIMEOUT_S,
    Attempt,
    GenerationResult,
    ReplicaReport,
)
from serving.generation.events import Assigned
from serving.generation.status import DispatcherStatus, ReplicaStatus
from serving.generation.submission import Cancellation, Submission
from serving.logs import log_fields
from serving.pool.announcer import Announcer
from serving.pool.metrics import Outcome, PoolMetrics
from serving.pool.replica_state import ReplicaClient, ReplicaState, Ticket, Tickets
from serving.pool.residency import MOST_POPULAR, ResidencyIndex
from serving.pool.throughput import ThroughputEstimator

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
_WATCH_S = 2.0
_RETRY_S = 0.5
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
        self._states = {client.id: ReplicaState(client) for client in clients}
        self._scheduler = Scheduler(speeds, limits)
        self._clock = clock
        self.metrics = PoolMetrics(pool)
        self.residency = ResidencyIndex(
            self._states, self._scheduler.demand.popular_extras, self._take_report, clock
        )
        self._throughput = ThroughputEstimator()
        self._quarantine = CrashQuarantine()
        self._tickets = Tickets()
        self.announcer = Announcer(self._tickets, self._scheduler, clock)
        self._announcing: asyncio.Task[None] | None = None
        #: Recently cancelled, in case their request comes later.
        self._cancelled: TTLCache[str, bool] = TTLCache(_CANCELLED, _CANCELLED_S, clock)
        self._started = False
        self._promotions: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        states = ", ".join(
            f"{s.client.id}: {'down' if s.report is None else len(s.running)}"
            for s in self._states.values()
        )
        return f"<Dispatcher {len(self._scheduler.queue)} waiting; {states}>"

    def start(self) -> None:
        """Begin to watch the replicas; call on the event loop."""
        self._started = True
        self._announcing = asyncio.create_task(self.announcer.run())
        for state in self._states.values():
            state.watcher = asyncio.create_task(self._watch(state))

    def add(self, client: ReplicaClient) -> None:
        state = self._states[client.id] = ReplicaState(client)
        if self._started:
            state.watcher = asyncio.create_task(self._watch(state))

    async def remove(self, replica_id: str) -> None:
        """Drain a replica, then remove it."""
        state = self._states[replica_id]
        state.leaving = True
        self._mark_down(state)
        if state.watcher is not None:
            state.watcher.cancel()
        while tasks := [t.task for t in state.running.values() if t.task is not None]:
            await asyncio.wait(tasks)
        self._states.pop(replica_id, None)

    def members(self) -> list[ScalingCandidate]:
        now = self._clock()
        return [
            ScalingCandidate(
                state.client.id,
                state.report is not None,
                len(state.running),
                state.idle_since_s,
                0.0 if state.running else self._scheduler.displacement.stop_s(state.client.id, now),
            )
            for state in self._states.values()
            if not state.leaving
        ]

    @property
    def waiting(self) -> int:
        """Queued requests that a replica with capacity could start now."""
        return len(self._scheduler.queue) - self._scheduler.queue.held

    async def close(self) -> None:
        tasks = [s.watcher for s in self._states.values() if s.watcher is not None]
        tasks += self._promotions
        tasks += [t.task for t in self._tickets if t.task is not None]
        if self._announcing is not None:
            tasks.append(self._announcing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> DispatcherStatus:
        now = self._clock()
        scheduler = self._scheduler
        return DispatcherStatus(
            waiting=len(scheduler.queue),
            held=scheduler.queue.held,
            work_per_s=scheduler.speeds.work_per_s,
            bytes_per_s=scheduler.speeds.bytes_per_s,
            prefetched=scheduler.prefetcher.guessed,
            prefetch_precision=scheduler.prefetcher.precision,
            quarantined=self._quarantine.count(now),
            replicas=[self._replica_status(state, now) for state in self._states.values()],
        )

    def _replica_status(self, state: ReplicaState, now_s: float) -> ReplicaStatus:
        report = state.report
        replica = self._scheduler.fleet.replicas.get(state.client.id)
        return ReplicaStatus(
            id=state.client.id,
            pid=report.pid if report else None,
            running=len(state.running),
            free_in_s=0.0 if replica is None else replica.busy_s(now_s),
            resident={tier: len(keys) for tier, keys in report.resident.items()} if report else {},
            eviction=report.eviction_policies if report else {},
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
        request = submission.request
        if submission.run_id in self._cancelled:
            raise Cancelled(_CANCELLED_TEXT)
        self._check_quarantine(submission)
        recipe = request.recipe
        queued = QueuedRequest(
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
            _answer(gone.answer, _refused(reason))
        ticket = Ticket(submission, queued, asyncio.get_running_loop().create_future())
        ticket.answer.add_done_callback(_retrieve)
        self._tickets.add(ticket)
        self._assign()
        if ticket.task is None:
            self.announcer.announce(ticket)
        self._promote(self._scheduler.promote(queued, now))
        return ticket

    def _check_quarantine(self, submission: Submission) -> None:
        blamed = self._quarantine.held(submission.tenant_id, submission.named, self._clock())
        if blamed:
            minutes = max(blamed.values()) / 60
            raise Quarantined(
                "two replicas died while they generated with {assets}; it is refused for "
                f"{minutes:.0f} minutes",
                tuple(sorted(blamed)),
            )

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
        _answer(ticket.answer, error)
        self._stop(ticket)

    def _assign(self) -> None:
        for assignment in self._scheduler.assign(self._clock()):
            request = assignment.request
            ticket = self._tickets[request.id]
            ticket.waiting = request
            state = self._states[assignment.replica_id]
            state.running[request.id] = ticket
            state.first_begins(self._clock())
            ticket.attempts += 1
            ticket.client = state.client
            self.announcer.following.publish(
                ticket.submission.key, Assigned(state.client.id, ticket.attempts)
            )
            ticket.task = asyncio.create_task(self._run(ticket, state))
            ticket.task.add_done_callback(partial(self._ended, ticket, state, assignment))

    def _promote(self, promotion: Promotion | None) -> None:
        if promotion is None:
            return
        state = self._states[promotion.replica_id]
        if state.promoting:
            return  # one at a time: generations and reports must not wait
        blobs = promotion.blobs
        state.promoting = True

        async def prefetch() -> None:
            try:
                # Errors recur, and are reported, when the request runs.
                with suppress(ServingError, TierError, AssetError, TimeoutError):
                    async with asyncio.timeout(WARM_TIMEOUT_S):
                        await state.client.warm(blobs)
            finally:
                state.promoting = False

        task = asyncio.create_task(prefetch())
        self._promotions.add(task)
        task.add_done_callback(self._promotions.discard)

    async def _run(self, ticket: Ticket, state: ReplicaState) -> None:
        with log_fields(request=ticket.waiting.id, tenant=ticket.submission.tenant_id):
            await self._attempt(ticket, state)

    async def _attempt(self, ticket: Ticket, state: ReplicaState) -> None:
        queue_ms = (self._clock() - ticket.waiting.arrived_s) * 1000
        ticket.lost = False
        try:
            key, following = ticket.submission.key, self.announcer.following
            attempt = Attempt(ticket.submission.request, following.detail(key))
            result, report = await state.client.generate(attempt, partial(following.forward, key))
            self._quarantine.succeeded(ticket.submission.named)
            speeds = self._throughput.after(
                result, ticket.submission.request, self._scheduler.speeds
            )
            self._scheduler.speeds = speeds
            self._take_report(state, report)
            timings = structs.replace(result.timings, queue_ms=queue_ms + result.timings.queue_ms)
            _answer(ticket.answer, structs.replace(result, timings=timings))
        except (ReplicaLost, UnexpectedEngineError) as lost:
            log.warning("replica %s lost: %s", state.client.id, lost)
            self.metrics.retried()
            if isinstance(lost, ReplicaLost):
                self._mark_down(state)
            self._retry(ticket, lost, died=isinstance(lost, ReplicaDied | UnexpectedEngineError))
        except Exception as error:
            if isinstance(error, NotFinite):  # the only engine error that is the request's fault
                error.engine_s = ticket.engine_s(self._clock())
                self._scheduler.charge_overrun(ticket.waiting, error.engine_s)
            _answer(ticket.answer, error)

    def _reject_quarantined(self) -> None:
        for request in list(self._scheduler.queue):
            ticket = self._tickets[request.id]
            try:
                self._check_quarantine(ticket.submission)
            except Quarantined as quarantined:
                self._scheduler.queue.withdraw(request.id)
                self._tickets.remove(ticket)
                _answer(ticket.answer, quarantined)

    def _retry(self, ticket: Ticket, error: ServingError, *, died: bool) -> None:
        if died:
            submission = ticket.submission
            self._quarantine.crashed(submission.tenant_id, submission.named, self._clock())
            self._reject_quarantined()
        try:
            self._check_quarantine(ticket.submission)
        except Quarantined as quarantined:
            _answer(ticket.answer, quarantined)
            return
        ticket.lost = ticket.attempts < MAX_ATTEMPTS
        if not ticket.lost:
            _answer(ticket.answer, error)

    def _ended(
        self, ticket: Ticket, state: ReplicaState, assignment: Assignment, task: asyncio.Task[None]
    ) -> None:
        """A done callback: it also runs if the task is cancelled before its first step."""
        del state.running[ticket.waiting.id]
        ticket.began_s = None
        state.first_begins(self._clock())
        state.idle_since_s = self._clock()
        ticket.task = None
        if task.cancelled() and not ticket.lost:
            ticket.answer.cancel()
        if ticket.lost and not ticket.answer.done():
            avoid = ticket.waiting.avoid | {state.client.id}
            ticket.waiting = replace(ticket.waiting, avoid=avoid)
            self._scheduler.requeue(ticket.waiting)
        else:
            self._tickets.remove(ticket)
        self._scheduler.ended(assignment, self._clock())
        self._assign()

    def _mark_down(self, state: ReplicaState) -> None:
        """Assign nothing to it until it reports again."""
        if state.report is not None:
            state.report = None
            self._scheduler.fleet.remove(state.client.id)

    def _hangs(self, state: ReplicaState) -> None:
        self._mark_down(state)
        for ticket in list(state.running.values()):
            if ticket.task is not None and not ticket.answer.done():
                self.metrics.retried()
                self._retry(ticket, ReplicaLost(f"{state.client.id} hangs"), died=True)
                ticket.task.cancel()

    def _take_report(self, state: ReplicaState, report: ReplicaReport) -> None:
        if state.leaving:
            return
        fleet = self._scheduler.fleet
        if state.report is not None and state.report.node != report.node:
            self._mark_down(state)  # restarted on another node
        if state.client.id not in fleet:
            state.idle_since_s = self._clock()
            fleet.add(
                state.client.id,
                report.node,
                checkpoint_capacity=report.checkpoint_capacity,
                max_in_flight=MAX_IN_FLIGHT,
            )
        fleet.on_device(state.client.id, report.ready, report.models)
        if not report.resident and state.report is not None:
            state.report = structs.replace(report, resident=state.report.resident)
            return
        state.report = report
        # The node's replicas share its file tiers.
        shared = {tier: keys for tier, keys in report.resident.items() if tier != "gpu"}
        fleet.on_node(report.node, shared)
        for other in self._states.values():
            if other is not state and other.report and other.report.node == report.node:
                resident: Mapping[str, frozenset[str]] = {**other.report.resident, **shared}
                other.report = structs.replace(other.report, resident=resident)

    async def _watch(self, state: ReplicaState) -> None:
        """A replica that is up must answer within REPORT_TIMEOUT_S; others at any time."""
        while True:
            state.news.clear()
            known = self.residency.directives().nodes
            patience_s = None if state.report is None else REPORT_TIMEOUT_S
            try:
                # Not wait_for: before Python 3.12 it may swallow a cancellation.
                async with asyncio.timeout(patience_s):
                    report = await state.client.describe(self.residency.directives())
            except (ServingError, TimeoutError):
                if state.report is not None:
                    log.warning(
                        "replica %s does not answer: it gets no new requests", state.client.id
                    )
                    self._hangs(state)
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                is_new = state.report is None
                self._take_report(state, report)
                self._assign()
                if is_new:
                    popular = self._scheduler.demand.most_popular(MOST_POPULAR, self._clock())
                    self._promote(Promotion(state.client.id, tuple(popular)) if popular else None)
            except Exception:  # polling must continue
                log.exception("the report of %s cannot be processed", state.client.id)
            if self.residency.directives().nodes != known:
                for other in self._states.values():
                    other.news.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_S):
                    await state.news.wait()


def _refused(refusal: Refusal) -> Refused:
    return Refused(refusal.status, refusal.reason, refusal.retry_after_s)


def _answer(
    future: asyncio.Future[GenerationResult], outcome: GenerationResult | Exception
) -> None:
    if not future.done():
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _retrieve(future: asyncio.Future[GenerationResult]) -> None:
    """Retrieve the exception, or asyncio logs it."""
    if not future.cancelled():
        with suppress(Exception):
            future.exception()
