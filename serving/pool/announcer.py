"""The state of a request for its followers: where it waits, a pool that wakes, how far it is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from cachetools import TTLCache

from router.scheduler import Scheduler
from router.standing import standings
from serving.errors import ServingError
from serving.generation.contract import Detail, Inquiry
from serving.generation.events import Assigned, Event, Queued, Starting, encode
from serving.pool.following import Following
from serving.pool.replica_state import Ticket, Tickets

log = logging.getLogger(__name__)

_INTERVAL_S = 1.0
_ASK_S = 2.0
_POLLED, _POLLED_S = 1_000, 0.25


class Announcer:
    """Announces the requests of one dispatcher to ``following``."""

    def __init__(
        self,
        tickets: Tickets,
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.following = Following(self.snapshot, self._detail_changed, clock)
        self._tickets = tickets
        self._scheduler = scheduler
        self._clock = clock
        self._polled: TTLCache[str, Sequence[bytes]] = TTLCache(_POLLED, _POLLED_S, clock)
        self._inquiries: set[asyncio.Task[bytes | None]] = set()
        self._announced: dict[str, tuple[Event, ...]] = {}
        #: How far a pool that wakes is; None: it is awake.
        self.starting: Callable[[], Starting | None] = lambda: None

    async def run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:  # must not end the announcements
                log.exception("followers are not told where their requests stand")
            await asyncio.sleep(_INTERVAL_S)

    def announce(self, ticket: Ticket) -> None:
        """Announce a new request that waits."""
        key = ticket.submission.key
        if self.following.detail(key) != "nothing":
            for event in self._states({key: ticket})[key]:
                self.following.publish(key, event)

    def look(self) -> None:
        """Announce what changed for the followed requests that wait."""
        following = self.following
        waiting = {
            key: ticket
            for key in following.followed()
            if (ticket := self._tickets.of(key)) is not None and ticket.task is None
        }
        states = self._states(waiting)
        for key, events in states.items():
            known = self._announced.get(key, ())
            for event in events:
                if not any(_is_close(event, other) for other in known):
                    following.publish(key, event)
                elif isinstance(event, Queued):  # compared with what was published
                    states[key] = (known[0], *events[1:])
        self._announced = states

    def _states(self, waiting: dict[str, Ticket]) -> dict[str, tuple[Event, ...]]:
        if not waiting:
            return {}
        scheduler, starting = self._scheduler, self.starting()
        known = standings(scheduler.queue, scheduler.fleet, scheduler.speeds, self._clock())
        states: dict[str, tuple[Event, ...]] = {}
        for key, ticket in waiting.items():
            standing = known.get(ticket.waiting.id)
            queued = Queued()
            if standing is not None:
                position, expected_s = standing
                queued = Queued(position, None if expected_s is None else round(expected_s, 1))
            states[key] = (queued,) if starting is None else (queued, starting)
        return states

    async def polled(self, key: str) -> Sequence[bytes]:
        """Return a snapshot, at most _POLLED_S old: polling needs no key and must stay cheap."""
        known = self._polled.get(key)
        if known is None:
            known = self._polled[key] = await self.snapshot(key)
        return known

    async def snapshot(self, key: str) -> Sequence[bytes]:
        """The encoded events of a request's present state; none if it is not here."""
        ticket = self._tickets.of(key)
        if ticket is None:
            return ()
        if ticket.task is None:
            return [encode(event) for event in self._states({key: ticket})[key]]
        events = [encode(Assigned(ticket.client.id if ticket.client else "", ticket.attempts))]
        step = await self._inquire(ticket, self.following.detail(key))
        return events if step is None else [*events, step]

    def _detail_changed(self, key: str, detail: Detail) -> None:
        ticket = self._tickets.of(key)
        if ticket is not None and ticket.task is not None:
            task = asyncio.create_task(self._inquire(ticket, detail))
            self._inquiries.add(task)
            task.add_done_callback(self._inquiries.discard)

    async def _inquire(self, ticket: Ticket, detail: Detail) -> bytes | None:
        """Return the encoded last step, if its replica tells it."""
        if ticket.client is None:
            return None
        try:
            async with asyncio.timeout(_ASK_S):
                return await ticket.client.progress(Inquiry(ticket.waiting.id, detail))
        except (ServingError, TimeoutError):
            return None


def _is_close(event: Event, other: Event) -> bool:
    """Whether followers need not hear of ``event`` after ``other``."""
    if not (isinstance(event, Queued) and isinstance(other, Queued)):
        return event == other
    now_s, then_s = event.expected_s, other.expected_s
    if event.position != other.position or (now_s is None) != (then_s is None):
        return False
    return now_s is None or then_s is None or abs(now_s - then_s) < max(2.0, 0.2 * then_s)
