"""Runs queued requests on replicas, and again when a replica is lost.

``assign`` runs after every change and starts a task per assignment; ``_ended`` frees its capacity,
however the attempt ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from msgspec import structs

from router.crash_quarantine import CrashQuarantine
from router.scheduler import Assignment, Promotion, Scheduler
from serving.errors import (
    NotFinite,
    Quarantined,
    ReplicaDied,
    ReplicaLost,
    ServingError,
    UnexpectedEngineError,
)
from serving.generation.contract import Attempt, GenerationResult
from serving.generation.events import Assigned
from serving.generation.submission import Submission
from serving.logs import log_fields
from serving.pool.announcer import Announcer
from serving.pool.metrics import PoolMetrics
from serving.pool.prefetching import Prefetching
from serving.pool.replica_state import ReplicaClient, ReplicaState, Ticket, Tickets
from serving.pool.residency import MOST_POPULAR
from serving.pool.roster import Roster
from serving.pool.throughput import ThroughputEstimator

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3


class Attempts:
    """The :class:`~serving.pool.roster.RosterListener` of a pool."""

    def __init__(
        self,
        clients: Sequence[ReplicaClient],
        scheduler: Scheduler,
        tickets: Tickets,
        announcer: Announcer,
        metrics: PoolMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._scheduler = scheduler
        self._tickets = tickets
        self._announcer = announcer
        self._metrics = metrics
        self._clock = clock
        self.roster = Roster(clients, scheduler, clock, self)
        self.quarantine = CrashQuarantine()
        self.throughput = ThroughputEstimator()
        self._prefetching = Prefetching()

    def assign(self) -> None:
        for assignment in self._scheduler.assign(self._clock()):
            request = assignment.request
            ticket = self._tickets[request.id]
            ticket.waiting = request
            state = self.roster.states[assignment.replica_id]
            state.running[request.id] = ticket
            state.first_begins(self._clock())
            ticket.attempts += 1
            ticket.client = state.client
            self._announcer.following.publish(
                ticket.submission.key, Assigned(state.client.id, ticket.attempts)
            )
            ticket.task = asyncio.create_task(self._run(ticket, state))
            ticket.task.add_done_callback(partial(self._ended, ticket, state, assignment))

    def prefetch(self, promotion: Promotion | None) -> None:
        if promotion is not None:
            self._prefetching.start(self.roster.states[promotion.replica_id], promotion)

    def check(self, submission: Submission) -> None:
        """Raise Quarantined if replicas died with one of its assets."""
        blamed = self.quarantine.held(submission.tenant_id, submission.named, self._clock())
        if blamed:
            minutes = max(blamed.values()) / 60
            raise Quarantined(
                "two replicas died while they generated with {assets}; it is refused for "
                f"{minutes:.0f} minutes",
                tuple(sorted(blamed)),
            )

    def reported(self) -> None:
        self.assign()

    def joined(self, state: ReplicaState) -> None:
        popular = self._scheduler.demand.most_popular(MOST_POPULAR, self._clock())
        if popular:
            self.prefetch(Promotion(state.client.id, tuple(popular)))

    def hangs(self, state: ReplicaState) -> None:
        for ticket in list(state.running.values()):
            if ticket.task is not None and not ticket.answer.done():
                self._metrics.retried()
                self._retry(ticket, ReplicaLost(f"{state.client.id} hangs"), died=True)
                ticket.task.cancel()

    def background(self) -> list[asyncio.Task[None]]:
        """Tasks to cancel at the end: watchers and prefetches."""
        return [*self.roster.watchers(), *self._prefetching.tasks]

    async def _run(self, ticket: Ticket, state: ReplicaState) -> None:
        with log_fields(request=ticket.waiting.id, tenant=ticket.submission.tenant_id):
            await self._attempt(ticket, state)

    async def _attempt(self, ticket: Ticket, state: ReplicaState) -> None:
        queue_ms = (self._clock() - ticket.waiting.arrived_s) * 1000
        ticket.lost = False
        try:
            key, following = ticket.submission.key, self._announcer.following
            attempt = Attempt(ticket.submission.request, following.detail(key))
            result, report = await state.client.generate(attempt, partial(following.forward, key))
            self.quarantine.succeeded(ticket.submission.named)
            speeds = self.throughput.after(
                result, ticket.submission.request, self._scheduler.speeds
            )
            self._scheduler.speeds = speeds
            self.roster.take_report(state, report)
            timings = structs.replace(result.timings, queue_ms=queue_ms + result.timings.queue_ms)
            answer(ticket.answer, structs.replace(result, timings=timings))
        except (ReplicaLost, UnexpectedEngineError) as lost:
            log.warning("replica %s lost: %s", state.client.id, lost)
            self._metrics.retried()
            if isinstance(lost, ReplicaLost):
                self.roster.mark_down(state)
            self._retry(ticket, lost, died=isinstance(lost, ReplicaDied | UnexpectedEngineError))
        except Exception as error:
            if isinstance(error, NotFinite):  # the only engine error that is the request's fault
                error.engine_s = ticket.engine_s(self._clock())
                self._scheduler.charge_overrun(ticket.waiting, error.engine_s)
            answer(ticket.answer, error)

    def _retry(self, ticket: Ticket, error: ServingError, *, died: bool) -> None:
        if died:
            submission = ticket.submission
            self.quarantine.crashed(submission.tenant_id, submission.named, self._clock())
            self._reject_quarantined()
        try:
            self.check(ticket.submission)
        except Quarantined as quarantined:
            answer(ticket.answer, quarantined)
            return
        ticket.lost = ticket.attempts < MAX_ATTEMPTS
        if not ticket.lost:
            answer(ticket.answer, error)

    def _reject_quarantined(self) -> None:
        for request in list(self._scheduler.queue):
            ticket = self._tickets[request.id]
            try:
                self.check(ticket.submission)
            except Quarantined as quarantined:
                self._scheduler.queue.withdraw(request.id)
                self._tickets.remove(ticket)
                answer(ticket.answer, quarantined)

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
        self.assign()


def answer(future: asyncio.Future[GenerationResult], outcome: GenerationResult | Exception) -> None:
    if not future.done():
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def retrieve(future: asyncio.Future[GenerationResult]) -> None:
    """Retrieve the exception, or asyncio logs it."""
    if not future.cancelled():
        with suppress(Exception):
            future.exception()
