"""The dispatcher: an async shell around the router's waiting room.

Mutable state, all of it touched on one event loop only: the room (what waits, what each
replica does and is believed to hold), the tickets, the replicas' clients. ``_assign`` runs
at every change. Sends happen outside of it; a request that ends, however it ends,
gives its slot back in one place (``_ended``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

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
    DeadlineExceeded,
    EngineBroke,
    InvalidRequest,
    NotFinite,
    Quarantined,
    Refused,
    ReplicaDied,
    ReplicaLost,
    ServingError,
)
from serving.generation.contract import GenerationResult, ReplicaReport
from serving.generation.submission import Submission
from serving.logs import about
from serving.pool.metrics import Outcome, PoolMetrics
from serving.pool.replica_state import ReplicaClient, ReplicaState, Ticket
from serving.pool.residency import MOST_POPULAR, PATIENCE_S, WARM_S, ResidencyIndex
from serving.pool.throughput import ThroughputEstimator

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
#: A replica that is up is asked this often, and must answer within the patience.
_WATCH_S = 2.0
_RETRY_S = 0.5


class Dispatcher:
    """Holds what waits for one pool of replicas. Lives on one event loop."""

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
        self.tally = PoolMetrics(pool)
        self.holdings = ResidencyIndex(
            self._states, self._scheduler.popular, self._heard_from, clock
        )
        self._throughput = ThroughputEstimator()
        self._quarantine = CrashQuarantine()
        self._tickets: dict[str, Ticket] = {}
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
        for state in self._states.values():
            state.watcher = asyncio.create_task(self._watch(state))

    def add(self, client: ReplicaClient) -> None:
        """One more replica; it is waited for until it is up."""
        state = self._states[client.id] = ReplicaState(client)
        if self._started:
            state.watcher = asyncio.create_task(self._watch(state))

    async def remove(self, replica_id: str) -> None:
        """Give a replica nothing new, wait until it has drawn what it has, and forget it."""
        state = self._states[replica_id]
        state.leaving = True
        self._down(state)
        if state.watcher is not None:
            state.watcher.cancel()
        while tasks := [t.task for t in state.running.values() if t.task is not None]:
            await asyncio.wait(tasks)
        self._states.pop(replica_id, None)

    def members(self) -> list[ScalingCandidate]:
        """Every replica, as the scaler sees it."""
        now = self._clock()
        return [
            ScalingCandidate(
                state.client.id,
                state.report is not None,
                len(state.running),
                state.idle_since_s,
                0.0 if state.running else self._scheduler.value_s(state.client.id, now),
            )
            for state in self._states.values()
            if not state.leaving
        ]

    @property
    def waiting(self) -> int:
        """How many requests a replica could be given, if one had room."""
        return len(self._scheduler.queue) - self._scheduler.queue.held

    async def close(self) -> None:
        tasks = [s.watcher for s in self._states.values() if s.watcher is not None]
        tasks += self._promotions
        tasks += [t.task for t in self._tickets.values() if t.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        """What waits and what each replica is doing, for people."""
        now = self._clock()
        return {
            "waiting": len(self._scheduler.queue),
            "held": self._scheduler.queue.held,
            "work_per_s": self._scheduler.speeds.work_per_s,
            "bytes_per_s": dict(self._scheduler.speeds.bytes_per_s),
            "prefetched": self._scheduler.prefetcher.guessed,
            "prefetch_precision": self._scheduler.prefetcher.precision,
            "quarantined": self._quarantine.count(now),
            "replicas": [
                {
                    "id": state.client.id,
                    "state": "down" if state.report is None else "up",
                    "pid": state.report.pid if state.report else None,
                    "running": len(state.running),
                    "free_in_s": self._free_in_s(state, now),
                    "resident": {
                        tier: len(keys)
                        for tier, keys in (state.report.resident if state.report else {}).items()
                    },
                    "eviction": dict(state.report.laws) if state.report else {},
                }
                for state in self._states.values()
            ],
        }

    def _free_in_s(self, state: ReplicaState, now_s: float) -> float:
        replica = self._scheduler.fleet.replicas.get(state.client.id)
        return 0.0 if replica is None else replica.busy_s(now_s)

    async def submit(self, submission: Submission) -> GenerationResult:
        """Wait for a replica and draw. Submitting an id again joins the first.

        Raises:
            Refused: the queue is full, or the wait would outlast the deadline, or a tenant that
                has less waiting needed the place.
            InvalidRequest: its own work would.
            Quarantined: replicas died of one of its assets.
            DeadlineExceeded, and whatever the engine raises.
        """
        outcome: Outcome = "failed"
        try:
            result = await self._submit(submission)
            outcome = "drawn"
            self.tally.generated(submission.plan, submission.request, result)
            return result
        except Refused:
            outcome = "refused"
            raise
        except DeadlineExceeded:
            outcome = "late"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.tally.ended(submission.plan, outcome)

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
            late = DeadlineExceeded(
                f"not done within {submission.timeout_s:.0f} s ({ticket.attempts} attempts)",
                ticket.attempts,
            )
            late.engine_s = ticket.engine_s(self._clock())
            self._leave(ticket)
            raise late from None
        except asyncio.CancelledError:
            self._leave(ticket)
            raise

    def _enqueue(self, submission: Submission) -> Ticket:
        now = self._clock()
        request = submission.request
        self._check_quarantine(submission)
        recipe = request.recipe
        waiting = QueuedRequest(
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
        admitted = self._scheduler.arrive(waiting, now)
        refusal = admitted.refusal
        if refusal is not None and refusal.status == 422:
            raise InvalidRequest("steps", refusal.reason)
        if refusal is not None:
            raise _refused(refusal)
        if admitted.displaced is not None:
            displaced, reason = admitted.displaced
            _answer(self._tickets.pop(displaced.id).answer, _refused(reason))
        ticket = Ticket(submission, waiting, asyncio.get_running_loop().create_future())
        ticket.answer.add_done_callback(_heard)
        self._tickets[request.id] = ticket
        self._assign()
        self._promote(self._scheduler.promote(waiting, now))
        return ticket

    def _check_quarantine(self, submission: Submission) -> None:
        held = self._quarantine.held(submission.tenant_id, submission.named, self._clock())
        if held:
            minutes = max(held.values()) / 60
            raise Quarantined(
                "replicas died twice while they drew {assets}; for "
                f"{minutes:.0f} minutes it is refused",
                tuple(sorted(held)),
            )

    def _leave(self, ticket: Ticket) -> None:
        """One waits for it no more. When nobody does, it is not drawn."""
        ticket.waiters -= 1
        if ticket.waiters:
            return
        request_id = ticket.waiting.id
        self._scheduler.queue.withdraw(request_id)
        if ticket.task is None:
            self._tickets.pop(request_id, None)
        else:
            ticket.lost = False  # and it shall not be drawn elsewhere, if that was the plan
            ticket.task.cancel()

    def _assign(self) -> None:
        """Called at every change; starts what the room says, and nothing else."""
        for assignment in self._scheduler.assign(self._clock()):
            waiting = assignment.request
            ticket = self._tickets[waiting.id]
            ticket.waiting = waiting
            state = self._states[assignment.replica_id]
            state.running[waiting.id] = ticket
            state.first_begins(self._clock())
            ticket.attempts += 1
            ticket.task = asyncio.create_task(self._run(ticket, state))
            ticket.task.add_done_callback(partial(self._ended, ticket, state, assignment))

    def _promote(self, promotion: Promotion | None) -> None:
        """Begin to bring up what a waiting request will want where it will probably be drawn."""
        if promotion is None:
            return
        state = self._states[promotion.replica_id]
        if state.promoting:
            return  # one at a time: it must not stand in the way of drawings and questions
        blobs = promotion.blobs
        state.promoting = True

        async def acquire() -> None:
            try:
                # What does not work here will be tried again, and said, when it is drawn.
                with suppress(ServingError, TierError, AssetError, TimeoutError):
                    async with asyncio.timeout(WARM_S):
                        await state.client.warm(blobs)
            finally:
                state.promoting = False

        task = asyncio.create_task(acquire())
        self._promotions.add(task)
        task.add_done_callback(self._promotions.discard)

    async def _run(self, ticket: Ticket, state: ReplicaState) -> None:
        """One attempt on one replica."""
        with about(request=ticket.waiting.id, tenant=ticket.submission.tenant_id):
            await self._attempt(ticket, state)

    async def _attempt(self, ticket: Ticket, state: ReplicaState) -> None:
        queue_ms = (self._clock() - ticket.waiting.arrived_s) * 1000
        ticket.lost = False
        try:
            result, report = await state.client.generate(ticket.submission.request)
            self._quarantine.succeeded(ticket.submission.named)
            speeds = self._throughput.after(
                result, ticket.submission.request, self._scheduler.speeds
            )
            self._scheduler.speeds = speeds
            self._heard_from(state, report)
            timings = replace(result.timings, queue_ms=queue_ms + result.timings.queue_ms)
            _answer(ticket.answer, replace(result, timings=timings))
        except (ReplicaLost, EngineBroke) as lost:
            log.warning("replica %s lost: %s", state.client.id, lost)
            self.tally.retried()
            if isinstance(lost, ReplicaLost):
                self._down(state)
            self._try_again(ticket, lost, died=isinstance(lost, ReplicaDied | EngineBroke))
        except Exception as error:
            if isinstance(error, NotFinite):  # of all that an engine raises, the request's fault
                error.engine_s = ticket.engine_s(self._clock())
                self._scheduler.charge_overrun(ticket.waiting, error.engine_s)
            _answer(ticket.answer, error)

    def _stop_waiting(self) -> None:
        """Of those that wait, the ones whose asset has just been quarantined."""
        for waiting in list(self._scheduler.queue):
            ticket = self._tickets[waiting.id]
            try:
                self._check_quarantine(ticket.submission)
            except Quarantined as quarantined:
                self._scheduler.queue.withdraw(waiting.id)
                del self._tickets[waiting.id]
                _answer(ticket.answer, quarantined)

    def _try_again(self, ticket: Ticket, error: ServingError, *, died: bool) -> None:
        """Another attempt, on another replica, unless it is the request that kills them."""
        if died:
            submission = ticket.submission
            self._quarantine.crashed(submission.tenant_id, submission.named, self._clock())
            self._stop_waiting()
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
        """Whatever became of an attempt, and even if it was cancelled before its first step,
        the slot is given back here."""
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
            self._tickets.pop(ticket.waiting.id, None)
        self._scheduler.ended(assignment, self._clock())
        self._assign()

    def _down(self, state: ReplicaState) -> None:
        """It gets nothing new until it has answered again."""
        if state.report is not None:
            state.report = None
            self._scheduler.fleet.remove(state.client.id)

    def _hangs(self, state: ReplicaState) -> None:
        """It does not answer: what it has is drawn elsewhere."""
        self._down(state)
        for ticket in list(state.running.values()):
            if ticket.task is not None and not ticket.answer.done():
                self.tally.retried()
                self._try_again(ticket, ReplicaLost(f"{state.client.id} hangs"), died=True)
                ticket.task.cancel()

    def _heard_from(self, state: ReplicaState, report: ReplicaReport) -> None:
        if state.leaving:
            return
        fleet = self._scheduler.fleet
        if state.report is not None and state.report.node != report.node:
            self._down(state)  # another one, of the same name
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
            state.report = replace(report, resident=state.report.resident)
            return
        state.report = report
        # The file tiers belong to the node: what one replica sees there, its neighbours have.
        shared = {tier: keys for tier, keys in report.resident.items() if tier != "gpu"}
        fleet.on_node(report.node, shared)
        for other in self._states.values():
            if other is not state and other.report and other.report.node == report.node:
                resident: Mapping[str, frozenset[str]] = {**other.report.resident, **shared}
                other.report = replace(other.report, resident=resident)

    async def _watch(self, state: ReplicaState) -> None:
        """Ask the replica how it is, for as long as the dispatcher lives.

        One that is up must answer in time; one that is down is waited for. What it
        reports corrects what was believed of it.
        """
        while True:
            state.news.clear()
            known = self.holdings.directives().nodes
            patience_s = None if state.report is None else PATIENCE_S
            try:
                # Not wait_for: before Python 3.12 it may swallow the cancellation of close().
                async with asyncio.timeout(patience_s):
                    report = await state.client.describe(self.holdings.directives())
            except (ServingError, TimeoutError):
                if state.report is not None:
                    log.warning("replica %s does not answer: it gets nothing new", state.client.id)
                    self._hangs(state)
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                is_new = state.report is None
                self._heard_from(state, report)
                self._assign()
                if is_new:
                    wanted = self._scheduler.most_wanted(MOST_POPULAR, self._clock())
                    self._promote(Promotion(state.client.id, tuple(wanted)) if wanted else None)
            except Exception:  # whatever it is, the replica must go on being watched
                log.exception("what %s reports cannot be taken", state.client.id)
            if self.holdings.directives().nodes != known:
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


def _heard(future: asyncio.Future[GenerationResult]) -> None:
    """An answer that nobody waits for is no error."""
    if not future.cancelled():
        with suppress(Exception):
            future.exception()
