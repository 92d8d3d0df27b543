"""The waiting room: an async shell around the router's pure assignment.

Mutable state, all of it touched on one event loop only: the waiting list, what
each replica is doing, what each replica is believed to hold. ``_assign`` runs at
every change. Sends happen outside of it; a request that ends, however it ends,
gives its slot back in one place (``_ended``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from assets.content import Blob
from assets.errors import AssetError
from orchestrator.errors import TierError
from router.admission import QueueLimits, admit
from router.assign import assign
from router.cost import Speeds
from router.fairness import FairClock
from router.replica import Replica as ReplicaView
from router.request import Waiting
from router.suspicion import Suspicion
from serving.drawing import Drawing, DrawRequest, ReplicaReport
from serving.errors import (
    DeadlineExceeded,
    EngineBroke,
    Quarantined,
    Refused,
    ReplicaDied,
    ReplicaLost,
    ServingError,
)

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
#: How much a new measurement of the speed counts against what was known.
_SMOOTHING = 0.3
#: A replica that is up is asked this often, and must answer within the patience.
_WATCH_S = 2.0
_PATIENCE_S = 10.0
_RETRY_S = 0.5
#: For as long somebody is told where it was found; the bytes come on.
_WARM_S = 60.0


@dataclass(frozen=True, slots=True)
class Submission:
    """A request on its way to the waiting room. ``timeout_s`` counts from its arrival there;
    ``named`` holds the content keys of what it asks for beside the base model."""

    request: DrawRequest
    tenant_id: str
    weight: float
    timeout_s: float
    named: frozenset[str] = frozenset()
    #: How many pictures of the tenant may be drawn at a time; more wait.
    pictures_at_once: int | None = None


class ReplicaClient(Protocol):
    """How a dispatcher reaches a replica. Both raise ReplicaLost when it is dead."""

    id: str

    async def describe(self) -> ReplicaReport:
        """Waits until the replica is up, for as long as that takes."""

    async def draw(self, request: DrawRequest) -> tuple[Drawing, ReplicaReport]:
        """Cancelling the call stops the drawing."""

    async def forget(self, keys: Collection[str]) -> ReplicaReport:
        """Drop the values of these content keys from every tier that it reaches."""

    async def warm(self, blobs: Sequence[Blob]) -> str:
        """Bring blobs up to host RAM; the lowest tier on which one of them was found."""


@dataclass(slots=True)
class _Slot:
    client: ReplicaClient
    report: ReplicaReport | None = None  # None: down, or not up yet
    free_at_s: float = 0.0
    running: dict[str, frozenset[str]] = field(default_factory=dict)  # its keys, by request

    def view(self) -> ReplicaView:
        """What it reported, and what it has been sent since and will therefore hold."""
        assert self.report is not None
        resident = dict(self.report.resident)
        resident["gpu"] = resident.get("gpu", frozenset()).union(*self.running.values())
        return ReplicaView(self.client.id, self.free_at_s, len(self.running), resident)


@dataclass(slots=True)
class _Ticket:
    submission: Submission
    waiting: Waiting
    answer: asyncio.Future[Drawing]
    attempts: int = 0
    lost: bool = False  # the last attempt ended with its replica
    task: asyncio.Task[None] | None = None


class Dispatcher:
    """Holds what waits for one pool of replicas. Lives on one event loop."""

    def __init__(
        self,
        clients: Sequence[ReplicaClient],
        limits: QueueLimits | None = None,
        speeds: Speeds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = {client.id: _Slot(client) for client in clients}
        self._limits = limits or QueueLimits()
        self._speeds = speeds or Speeds()
        self._clock = clock
        self._measured = False  # until then the speed is a guess that the first drawing ends
        self._fair = FairClock()
        self._suspicion = Suspicion()
        self._tickets: dict[str, _Ticket] = {}
        self._waiting: dict[str, Waiting] = {}
        self._watchers: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        slots = ", ".join(
            f"{s.client.id}: {'down' if s.report is None else len(s.running)}"
            for s in self._slots.values()
        )
        return f"<Dispatcher {len(self._waiting)} waiting; {slots}>"

    def start(self) -> None:
        """Begin to watch the replicas; call on the event loop."""
        self._watchers = [asyncio.create_task(self._watch(slot)) for slot in self._slots.values()]

    async def close(self) -> None:
        tasks = self._watchers + [t.task for t in self._tickets.values() if t.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        """What waits and what each replica is doing, for people."""
        now = self._clock()
        return {
            "waiting": len(self._waiting),
            "work_per_s": self._speeds.work_per_s,
            "quarantined": self._suspicion.count(now),
            "replicas": [
                {
                    "id": slot.client.id,
                    "state": "down" if slot.report is None else "up",
                    "pid": slot.report.pid if slot.report else None,
                    "running": len(slot.running),
                    "free_in_s": max(0.0, slot.free_at_s - now),
                    "resident": {
                        tier: len(keys)
                        for tier, keys in (slot.report.resident if slot.report else {}).items()
                    },
                }
                for slot in self._slots.values()
            ],
        }

    def resident(self) -> frozenset[str]:
        """The content keys of what lies in any tier of any replica that is up."""
        reports = [slot.report for slot in self._slots.values() if slot.report is not None]
        return frozenset().union(*(keys for r in reports for keys in r.resident.values()))

    async def forget(self, keys: Collection[str]) -> None:
        """Have every replica that holds one of these drop it. One that is down, or still leases
        it, is asked again when whoever calls this looks at ``resident`` again."""

        async def ask(slot: _Slot) -> None:
            with suppress(ServingError, TimeoutError):
                async with asyncio.timeout(_PATIENCE_S):
                    self._heard_from(slot, await slot.client.forget(keys))

        up = [slot for slot in self._slots.values() if slot.report is not None]
        await asyncio.gather(*map(ask, up))

    async def warm(self, blobs: Sequence[Blob]) -> dict[str, str]:
        """Bring blobs up on every replica's node; the tier on which each found them. A replica
        that is down, or has no room for them, is left out."""
        found: dict[str, str] = {}

        async def ask(slot: _Slot) -> None:
            with suppress(ServingError, TierError, AssetError, TimeoutError):
                async with asyncio.timeout(_WARM_S):
                    found[slot.client.id] = await slot.client.warm(blobs)

        await asyncio.gather(*(ask(s) for s in self._slots.values() if s.report is not None))
        return found

    async def submit(self, submission: Submission) -> Drawing:
        """Wait for a replica and draw. Submitting an id again joins the first.

        Raises:
            Refused: the queue is full, or the wait would outlast the deadline.
            Quarantined: replicas died of one of its assets.
            DeadlineExceeded, and whatever the engine raises.
        """
        request_id = submission.request.id
        ticket = self._tickets.get(request_id)
        if ticket is None:
            ticket = self._enqueue(submission)
        deadline = ticket.waiting.deadline_s - self._clock()
        try:
            async with asyncio.timeout(deadline):
                return await asyncio.shield(ticket.answer)
        except TimeoutError:
            self._abandon(ticket)
            raise DeadlineExceeded(
                f"not done within {submission.timeout_s:.0f} s ({ticket.attempts} attempts)"
            ) from None
        except asyncio.CancelledError:
            self._abandon(ticket)
            raise

    def _enqueue(self, submission: Submission) -> _Ticket:
        now = self._clock()
        request = submission.request
        self._check_quarantine(submission)
        waiting = Waiting(
            id=request.id,
            tenant_id=submission.tenant_id,
            work=request.work,
            blobs=request.recipe.blobs(),
            arrived_s=now,
            deadline_s=now + submission.timeout_s,
            virtual_finish=0.0,
            pictures=len(request.seeds),
            pictures_at_once=submission.pictures_at_once,
        )
        refusal = admit(
            waiting,
            list(self._waiting.values()),
            self._views(),
            self._speeds,
            self._limits,
            now,
        )
        if refusal is not None:
            raise Refused(refusal.status, refusal.reason, refusal.retry_after_s)
        stamp = self._fair.stamp(submission.tenant_id, request.work, submission.weight)
        waiting = replace(waiting, virtual_finish=stamp)
        ticket = _Ticket(submission, waiting, asyncio.get_running_loop().create_future())
        ticket.answer.add_done_callback(_heard)
        self._tickets[request.id] = ticket
        self._waiting[request.id] = waiting
        self._assign()
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

    def _abandon(self, ticket: _Ticket) -> None:
        """Nobody waits for it any more."""
        request_id = ticket.waiting.id
        self._waiting.pop(request_id, None)
        if ticket.task is None:
            self._tickets.pop(request_id, None)
        else:
            ticket.task.cancel()

    def _views(self) -> list[ReplicaView]:
        return [slot.view() for slot in self._slots.values() if slot.report is not None]

    def _assign(self) -> None:
        """Called at every change; starts what the router says, and nothing else."""
        if not self._waiting:
            return
        now = self._clock()
        drawing = Counter[str]()
        for ticket in self._tickets.values():
            if ticket.task is not None:
                drawing[ticket.waiting.tenant_id] += ticket.waiting.pictures
        waiting_now = list(self._waiting.values())
        for assignment in assign(waiting_now, self._views(), self._speeds, now, drawing):
            waiting = self._waiting.pop(assignment.request_id)
            self._fair.served(waiting.virtual_finish)
            ticket = self._tickets[assignment.request_id]
            slot = self._slots[assignment.replica_id]
            slot.running[waiting.id] = frozenset(blob.key for blob in waiting.blobs)
            slot.free_at_s = now + assignment.cost_s
            ticket.attempts += 1
            ticket.task = asyncio.create_task(self._run(ticket, slot))
            ticket.task.add_done_callback(partial(self._ended, ticket, slot))

    async def _run(self, ticket: _Ticket, slot: _Slot) -> None:
        """One attempt on one replica."""
        queue_s = self._clock() - ticket.waiting.arrived_s
        ticket.lost = False
        try:
            drawing, report = await slot.client.draw(ticket.submission.request)
            self._suspicion.drew(ticket.submission.named)
            self._learn(drawing, ticket.submission.request)
            self._heard_from(slot, report)
            timings = replace(drawing.timings, queue_ms=queue_s * 1000)
            _answer(ticket.answer, replace(drawing, timings=timings))
        except (ReplicaLost, EngineBroke) as lost:
            log.warning(
                "replica %s lost with request %s: %s", slot.client.id, ticket.waiting.id, lost
            )
            if isinstance(lost, ReplicaLost):
                slot.report = None
            if isinstance(lost, ReplicaDied | EngineBroke):
                submission = ticket.submission
                self._suspicion.crashed(submission.tenant_id, submission.named, self._clock())
                self._stop_waiting()
            self._try_again(ticket, lost)
        except Exception as error:
            _answer(ticket.answer, error)

    def _stop_waiting(self) -> None:
        """Of those that wait, the ones whose asset has just been quarantined."""
        for request_id in list(self._waiting):
            ticket = self._tickets[request_id]
            try:
                self._check_quarantine(ticket.submission)
            except Quarantined as quarantined:
                del self._waiting[request_id], self._tickets[request_id]
                _answer(ticket.answer, quarantined)

    def _try_again(self, ticket: _Ticket, error: ServingError) -> None:
        """Another attempt, on another replica, unless it is the request that kills them."""
        try:
            self._check_quarantine(ticket.submission)
        except Quarantined as quarantined:
            _answer(ticket.answer, quarantined)
            return
        ticket.lost = ticket.attempts < MAX_ATTEMPTS
        if not ticket.lost:
            _answer(ticket.answer, error)

    def _ended(self, ticket: _Ticket, slot: _Slot, task: asyncio.Task[None]) -> None:
        """Whatever became of an attempt, and even if it was cancelled before its first step,
        the slot is given back here."""
        del slot.running[ticket.waiting.id]
        ticket.task = None
        if not slot.running:
            slot.free_at_s = self._clock()
        if task.cancelled():
            ticket.answer.cancel()
        if ticket.lost and not ticket.answer.done():
            avoid = ticket.waiting.avoid | {slot.client.id}
            ticket.waiting = replace(ticket.waiting, avoid=avoid)
            self._waiting[ticket.waiting.id] = ticket.waiting
        else:
            self._tickets.pop(ticket.waiting.id, None)
        self._assign()

    def _learn(self, drawing: Drawing, request: DrawRequest) -> None:
        spent_s = (drawing.timings.denoise_ms + drawing.timings.decode_ms) / 1000
        if spent_s > 0:
            seen = request.work / spent_s
            known = self._speeds.work_per_s if self._measured else seen
            self._measured = True
            self._speeds = replace(self._speeds, work_per_s=known + _SMOOTHING * (seen - known))

    def _heard_from(self, slot: _Slot, report: ReplicaReport) -> None:
        slot.report = report
        # The file tiers belong to the node: what one replica sees there, its neighbours have.
        shared = {tier: keys for tier, keys in report.resident.items() if tier != "gpu"}
        for other in self._slots.values():
            if other is not slot and other.report and other.report.node == report.node:
                resident: Mapping[str, frozenset[str]] = {**other.report.resident, **shared}
                other.report = replace(other.report, resident=resident)

    async def _watch(self, slot: _Slot) -> None:
        """Ask the replica how it is, for as long as the dispatcher lives.

        One that is up must answer in time; one that is down is waited for. What it
        reports corrects what was believed of it.
        """
        while True:
            patience_s = None if slot.report is None else _PATIENCE_S
            try:
                # Not wait_for: before Python 3.12 it may swallow the cancellation of close().
                async with asyncio.timeout(patience_s):
                    report = await slot.client.describe()
            except (ServingError, TimeoutError):
                if slot.report is not None:
                    log.warning("replica %s does not answer: it gets nothing new", slot.client.id)
                    slot.report = None
                await asyncio.sleep(_RETRY_S)
                continue
            self._heard_from(slot, report)
            self._assign()
            await asyncio.sleep(_WATCH_S)


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
