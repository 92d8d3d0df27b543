"""The replicas of a pool as its dispatcher knows them: watched, drained, up or down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from msgspec import structs

from router.autoscaling import ScalingCandidate
from router.replica import MAX_IN_FLIGHT
from router.scheduler import Scheduler
from serving.errors import ServingError
from serving.generation.contract import REPORT_TIMEOUT_S, ReplicaReport
from serving.generation.status import ReplicaStatus
from serving.pool.replica_state import ReplicaClient, ReplicaState
from serving.pool.residency import ResidencyIndex

log = logging.getLogger(__name__)

_WATCH_S = 2.0
_RETRY_S = 0.5


class RosterListener(Protocol):
    """Receives the roster's events, on the event loop."""

    def reported(self) -> None:
        """A replica's report was taken: it may have capacity."""

    def joined(self, state: ReplicaState) -> None:
        """A replica is up that was not."""

    def hangs(self, state: ReplicaState) -> None:
        """A replica that was up does not answer; its requests cannot be waited for."""


class Roster:
    """Bound to one event loop."""

    def __init__(
        self,
        clients: Sequence[ReplicaClient],
        scheduler: Scheduler,
        clock: Callable[[], float],
        listener: RosterListener,
    ) -> None:
        self.states = {client.id: ReplicaState(client) for client in clients}
        self._scheduler = scheduler
        self._clock = clock
        self._listener = listener
        self._started = False
        self.residency = ResidencyIndex(
            self.states, scheduler.demand.popular_extras, self.take_report, clock
        )

    def start(self) -> None:
        """Begin to watch the replicas; call on the event loop."""
        self._started = True
        for state in self.states.values():
            state.watcher = asyncio.create_task(self._watch(state))

    def watchers(self) -> list[asyncio.Task[None]]:
        return [s.watcher for s in self.states.values() if s.watcher is not None]

    def add(self, client: ReplicaClient) -> None:
        state = self.states[client.id] = ReplicaState(client)
        if self._started:
            state.watcher = asyncio.create_task(self._watch(state))

    async def remove(self, replica_id: str) -> None:
        """Drain a replica, then remove it."""
        state = self.states[replica_id]
        state.leaving = True
        self.mark_down(state)
        if state.watcher is not None:
            state.watcher.cancel()
        while tasks := [t.task for t in state.running.values() if t.task is not None]:
            await asyncio.wait(tasks)
        self.states.pop(replica_id, None)

    def members(self) -> list[ScalingCandidate]:
        now = self._clock()
        stop_s = self._scheduler.displacement.stop_s
        return [
            ScalingCandidate(
                state.client.id,
                state.report is not None,
                len(state.running),
                state.idle_since_s,
                0.0 if state.running else stop_s(state.client.id, now),
            )
            for state in self.states.values()
            if not state.leaving
        ]

    def statuses(self) -> list[ReplicaStatus]:
        now = self._clock()
        return [self._status(state, now) for state in self.states.values()]

    def _status(self, state: ReplicaState, now_s: float) -> ReplicaStatus:
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

    def mark_down(self, state: ReplicaState) -> None:
        """Assign nothing to it until it reports again."""
        if state.report is not None:
            state.report = None
            self._scheduler.fleet.remove(state.client.id)

    def take_report(self, state: ReplicaState, report: ReplicaReport) -> None:
        if state.leaving:
            return
        fleet = self._scheduler.fleet
        if state.report is not None and state.report.node != report.node:
            self.mark_down(state)  # restarted on another node
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
        for other in self.states.values():
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
                    self.mark_down(state)
                    self._listener.hangs(state)
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                is_new = state.report is None
                self.take_report(state, report)
                self._listener.reported()
                if is_new:
                    self._listener.joined(state)
            except Exception:  # polling must continue
                log.exception("the report of %s cannot be processed", state.client.id)
            if self.residency.directives().nodes != known:
                for other in self.states.values():
                    other.news.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_S):
                    await state.news.wait()
