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
from serving.generation.contract import Drawing, ReplicaReport
from serving.generation.submission import Submission
from serving.logs import about
from serving.pool.metrics import Outcome, Tally
from serving.pool.replica_state import ReplicaClient, Slot, Ticket
from serving.pool.residency import MOST_POPULAR, PATIENCE_S, WARM_S, Holdings
from serving.pool.throughput import Pace

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
        self._slots = {client.id: Slot(client) for client in clients}
        self._scheduler = Scheduler(speeds, limits)
        self._clock = clock
        self.tally = Tally(pool)
        self.holdings = Holdings(self._slots, self._scheduler.popular, self._heard_from, clock)
        self._pace = Pace()
        self._suspicion = CrashQuarantine()
        self._tickets: dict[str, Ticket] = {}
        self._started = False
        self._promotions: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        slots = ", ".join(
            f"{s.client.id}: {'down' if s.report is None else len(s.running)}"
            for s in self._slots.values()
        )
        return f"<Dispatcher {len(self._scheduler.queue)} waiting; {slots}>"

    def start(self) -> None:
        """Begin to watch the replicas; call on the event loop."""
        self._started = True
        for slot in self._slots.values():
            slot.watcher = asyncio.create_task(self._watch(slot))

    def add(self, client: ReplicaClient) -> None:
        """One more replica; it is waited for until it is up."""
        slot = self._slots[client.id] = Slot(client)
        if self._started:
            slot.watcher = asyncio.create_task(self._watch(slot))

    async def remove(self, replica_id: str) -> None:
        """Give a replica nothing new, wait until it has drawn what it has, and forget it."""
        slot = self._slots[replica_id]
        slot.leaving = True
        self._down(slot)
        if slot.watcher is not None:
            slot.watcher.cancel()
        while tasks := [t.task for t in slot.running.values() if t.task is not None]:
            await asyncio.wait(tasks)
        self._slots.pop(replica_id, None)

    def members(self) -> list[ScalingCandidate]:
        """Every replica, as the scaler sees it."""
        now = self._clock()
        return [
            ScalingCandidate(
                slot.client.id,
                slot.report is not None,
                len(slot.running),
                slot.idle_since_s,
                0.0 if slot.running else self._scheduler.value_s(slot.client.id, now),
            )
            for slot in self._slots.values()
            if not slot.leaving
        ]

    @property
    def waiting(self) -> int:
        """How many requests a replica could be given, if one had room."""
        return len(self._scheduler.queue) - self._scheduler.queue.held

    async def close(self) -> None:
        tasks = [s.watcher for s in self._slots.values() if s.watcher is not None]
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
            "quarantined": self._suspicion.count(now),
            "replicas": [
                {
                    "id": slot.client.id,
                    "state": "down" if slot.report is None else "up",
                    "pid": slot.report.pid if slot.report else None,
                    "running": len(slot.running),
                    "free_in_s": self._free_in_s(slot, now),
                    "resident": {
                        tier: len(keys)
                        for tier, keys in (slot.report.resident if slot.report else {}).items()
                    },
                    "eviction": dict(slot.report.laws) if slot.report else {},
                }
                for slot in self._slots.values()
            ],
        }

    def _free_in_s(self, slot: Slot, now_s: float) -> float:
        replica = self._scheduler.fleet.replicas.get(slot.client.id)
        return 0.0 if replica is None else replica.busy_s(now_s)

    async def submit(self, submission: Submission) -> Drawing:
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
            drawing = await self._submit(submission)
            outcome = "drawn"
            self.tally.drawn(submission.plan, submission.request, drawing)
            return drawing
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

    async def _submit(self, submission: Submission) -> Drawing:
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
            pictures=len(request.seeds),
            pictures_at_once=submission.pictures_at_once,
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
        held = self._suspicion.held(submission.tenant_id, submission.named, self._clock())
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
            slot = self._slots[assignment.replica_id]
            slot.running[waiting.id] = ticket
            slot.first_begins(self._clock())
            ticket.attempts += 1
            ticket.task = asyncio.create_task(self._run(ticket, slot))
            ticket.task.add_done_callback(partial(self._ended, ticket, slot, assignment))

    def _promote(self, promotion: Promotion | None) -> None:
        """Begin to bring up what a waiting request will want where it will probably be drawn."""
        if promotion is None:
            return
        slot = self._slots[promotion.replica_id]
        if slot.promoting:
            return  # one at a time: it must not stand in the way of drawings and questions
        blobs = promotion.blobs
        slot.promoting = True

        async def bring() -> None:
            try:
                # What does not work here will be tried again, and said, when it is drawn.
                with suppress(ServingError, TierError, AssetError, TimeoutError):
                    async with asyncio.timeout(WARM_S):
                        await slot.client.warm(blobs)
            finally:
                slot.promoting = False

        task = asyncio.create_task(bring())
        self._promotions.add(task)
        task.add_done_callback(self._promotions.discard)

    async def _run(self, ticket: Ticket, slot: Slot) -> None:
        """One attempt on one replica."""
        with about(request=ticket.waiting.id, tenant=ticket.submission.tenant_id):
            await self._attempt(ticket, slot)

    async def _attempt(self, ticket: Ticket, slot: Slot) -> None:
        queue_ms = (self._clock() - ticket.waiting.arrived_s) * 1000
        ticket.lost = False
        try:
            drawing, report = await slot.client.draw(ticket.submission.request)
            self._suspicion.drew(ticket.submission.named)
            speeds = self._pace.after(drawing, ticket.submission.request, self._scheduler.speeds)
            self._scheduler.speeds = speeds
            self._heard_from(slot, report)
            timings = replace(drawing.timings, queue_ms=queue_ms + drawing.timings.queue_ms)
            _answer(ticket.answer, replace(drawing, timings=timings))
        except (ReplicaLost, EngineBroke) as lost:
            log.warning("replica %s lost: %s", slot.client.id, lost)
            self.tally.retried()
            if isinstance(lost, ReplicaLost):
                self._down(slot)
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
            self._suspicion.crashed(submission.tenant_id, submission.named, self._clock())
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
        self, ticket: Ticket, slot: Slot, assignment: Assignment, task: asyncio.Task[None]
    ) -> None:
        """Whatever became of an attempt, and even if it was cancelled before its first step,
        the slot is given back here."""
        del slot.running[ticket.waiting.id]
        ticket.began_s = None
        slot.first_begins(self._clock())
        slot.idle_since_s = self._clock()
        ticket.task = None
        if task.cancelled() and not ticket.lost:
            ticket.answer.cancel()
        if ticket.lost and not ticket.answer.done():
            avoid = ticket.waiting.avoid | {slot.client.id}
            ticket.waiting = replace(ticket.waiting, avoid=avoid)
            self._scheduler.requeue(ticket.waiting)
        else:
            self._tickets.pop(ticket.waiting.id, None)
        self._scheduler.ended(assignment, self._clock())
        self._assign()

    def _down(self, slot: Slot) -> None:
        """It gets nothing new until it has answered again."""
        if slot.report is not None:
            slot.report = None
            self._scheduler.fleet.remove(slot.client.id)

    def _hangs(self, slot: Slot) -> None:
        """It does not answer: what it has is drawn elsewhere."""
        self._down(slot)
        for ticket in list(slot.running.values()):
            if ticket.task is not None and not ticket.answer.done():
                self.tally.retried()
                self._try_again(ticket, ReplicaLost(f"{slot.client.id} hangs"), died=True)
                ticket.task.cancel()

    def _heard_from(self, slot: Slot, report: ReplicaReport) -> None:
        if slot.leaving:
            return
        fleet = self._scheduler.fleet
        if slot.report is not None and slot.report.node != report.node:
            self._down(slot)  # another one, of the same name
        if slot.client.id not in fleet:
            slot.idle_since_s = self._clock()
            fleet.add(
                slot.client.id,
                report.node,
                checkpoint_capacity=report.checkpoint_capacity,
                max_in_flight=MAX_IN_FLIGHT,
            )
        fleet.on_device(slot.client.id, report.ready, report.models)
        if not report.resident and slot.report is not None:
            slot.report = replace(report, resident=slot.report.resident)
            return
        slot.report = report
        # The file tiers belong to the node: what one replica sees there, its neighbours have.
        shared = {tier: keys for tier, keys in report.resident.items() if tier != "gpu"}
        fleet.on_node(report.node, shared)
        for other in self._slots.values():
            if other is not slot and other.report and other.report.node == report.node:
                resident: Mapping[str, frozenset[str]] = {**other.report.resident, **shared}
                other.report = replace(other.report, resident=resident)

    async def _watch(self, slot: Slot) -> None:
        """Ask the replica how it is, for as long as the dispatcher lives.

        One that is up must answer in time; one that is down is waited for. What it
        reports corrects what was believed of it.
        """
        while True:
            slot.news.clear()
            known = self.holdings.guidance().nodes
            patience_s = None if slot.report is None else PATIENCE_S
            try:
                # Not wait_for: before Python 3.12 it may swallow the cancellation of close().
                async with asyncio.timeout(patience_s):
                    report = await slot.client.describe(self.holdings.guidance())
            except (ServingError, TimeoutError):
                if slot.report is not None:
                    log.warning("replica %s does not answer: it gets nothing new", slot.client.id)
                    self._hangs(slot)
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                is_new = slot.report is None
                self._heard_from(slot, report)
                self._assign()
                if is_new:
                    wanted = self._scheduler.most_wanted(MOST_POPULAR, self._clock())
                    self._promote(Promotion(slot.client.id, tuple(wanted)) if wanted else None)
            except Exception:  # whatever it is, the replica must go on being watched
                log.exception("what %s reports cannot be taken", slot.client.id)
            if self.holdings.guidance().nodes != known:
                for other in self._slots.values():
                    other.news.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_S):
                    await slot.news.wait()


def _refused(refusal: Refusal) -> Refused:
    return Refused(refusal.status, refusal.reason, refusal.retry_after_s)


def _answer(future: asyncio.Future[Drawing], outcome: Drawing | Exception) -> None:
    if not future.done():
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _heard(future: asyncio.Future[Drawing]) -> None:
    """An answer that nobody waits for is no error."""
    if not future.cancelled():
        with suppress(Exception):
            future.exception()
