"""The queue of one pool, in fair order within each checkpoint."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import replace
from math import inf

from router.backlogs import Backlogs
from router.concurrency import ConcurrencyLimit
from router.request import QueuedRequest, QueuePosition

_Entry = tuple[QueuePosition, str]


class Queue:
    """Mutable. Of a tenant whose plan limits concurrent images, only that many enter the groups;
    the rest are held back, in order."""

    def __init__(self) -> None:
        self._requests: dict[str, QueuedRequest] = {}
        self._groups: dict[str, list[_Entry]] = {}
        self._limit = ConcurrencyLimit(self._requests.__getitem__, self._enter)
        #: By tenant.
        self.backlogs = Backlogs()

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(self._requests.values())

    @property
    def held(self) -> int:
        return len(self._limit)

    @property
    def groups(self) -> dict[str, list[_Entry]]:
        """The (position, request ID) pairs of each requested checkpoint, in order."""
        return self._groups

    def get(self, request_id: str) -> QueuedRequest | None:
        return self._requests.get(request_id)

    def first(self, group: str) -> QueuedRequest:
        return self._requests[self._groups[group][0][1]]

    def few(self, group: str, count: int) -> list[QueuedRequest]:
        return [self._requests[request_id] for _, request_id in self._groups[group][:count]]

    def backlog(self, group: str) -> tuple[int, QueuedRequest]:
        """Return the group's size and last request, without deprioritized ones if others exist."""
        entries = self._groups[group]
        count = bisect_left(entries, ((True, -inf), "")) or len(entries)
        return count, self._requests[entries[count - 1][1]]

    def add(self, request: QueuedRequest) -> None:
        self._requests[request.id] = request
        self.backlogs.add(request)
        self._limit.add(request)

    def take(self, request_id: str) -> QueuedRequest:
        """Remove a request to run it; its images count against the limit until ``release``."""
        request = self._remove(request_id)
        self._leave(request)
        return request

    def release(self, request: QueuedRequest) -> None:
        self._limit.release(request)

    def withdraw(self, request_id: str) -> None:
        """Remove a request, if queued."""
        if request_id not in self._requests:
            return
        request = self._remove(request_id)
        if request in self._limit:
            self._limit.remove(request)
            return
        self._leave(request)
        self.release(request)

    def move(self, request_id: str, position: QueuePosition) -> None:
        request = self._requests[request_id]
        moved = self._requests[request_id] = replace(request, position=position)
        self.backlogs.replace(moved)
        if request in self._limit:
            self._limit.move(request, position)
        else:
            self._leave(request)
            self._enter(moved)

    def _remove(self, request_id: str) -> QueuedRequest:
        request = self._requests.pop(request_id)
        self.backlogs.remove(request)
        return request

    def _enter(self, request: QueuedRequest) -> None:
        insort(self._groups.setdefault(request.group, []), (request.position, request.id))

    def _leave(self, request: QueuedRequest) -> None:
        group = self._groups[request.group]
        del group[bisect_left(group, (request.position, request.id))]
        if not group:
            del self._groups[request.group]
