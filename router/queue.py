"""What waits, grouped by checkpoint and in fair order within each group."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import replace
from math import inf

from router.request import QueuedRequest, QueuePosition

_Standing = tuple[QueuePosition, str]


class Queue:
    """Mutable. Of a tenant whose plan allows so many pictures at a time, no more than those
    stand in the groups; the rest is held back, in its order. The first of what is held back is
    never overtaken by what needs less."""

    def __init__(self) -> None:
        self._requests: dict[str, QueuedRequest] = {}
        self._groups: dict[str, list[_Standing]] = {}
        self._held: dict[str, list[_Standing]] = {}
        self._taken: dict[str, int] = {}  # pictures of a limited tenant in the groups, or drawn
        self.work = 0.0
        self._work: dict[str, float] = {}  # of what waits, by tenant
        self._of: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(self._requests.values())

    @property
    def held(self) -> int:
        """How many are held back: none of them could be drawn now, however many could draw."""
        return sum(map(len, self._held.values()))

    def get(self, request_id: str) -> QueuedRequest | None:
        return self._requests.get(request_id)

    def count_of(self, tenant_id: str) -> int:
        return len(self._of.get(tenant_id, ()))

    def of(self, tenant_id: str) -> list[QueuedRequest]:
        """A tenant's requests, in the order in which they came."""
        return [self._requests[request_id] for request_id in self._of.get(tenant_id, ())]

    def is_deprioritized(self, tenant_id: str) -> bool:
        """Whether a tenant that has requests here goes behind the others, by its first one."""
        return self._requests[next(iter(self._of[tenant_id]))].is_deprioritized

    def work_by_tenant(self) -> dict[str, float]:
        return self._work

    @property
    def groups(self) -> dict[str, list[_Standing]]:
        """For each checkpoint that somebody waits for: (place, id), in order."""
        return self._groups

    def first(self, group: str) -> QueuedRequest:
        return self._requests[self._groups[group][0][1]]

    def few(self, group: str, count: int) -> list[QueuedRequest]:
        """The first ones, in order."""
        return [self._requests[request_id] for _, request_id in self._groups[group][:count]]

    def backlog(self, group: str) -> tuple[int, QueuedRequest]:
        """How many requests of a group wait in earnest, and the last of them. Those that step back
        count only if all of them do."""
        standing = self._groups[group]
        count = bisect_left(standing, ((True, -inf), "")) or len(standing)
        return count, self._requests[standing[count - 1][1]]

    def add(self, request: QueuedRequest) -> None:
        tenant = request.tenant_id
        self._requests[request.id] = request
        self.work += request.work
        self._work[tenant] = self._work.get(tenant, 0.0) + request.work
        self._of.setdefault(tenant, {})[request.id] = None
        if request.max_concurrent_images is None:
            self._enter(request)
        else:
            insort(self._held.setdefault(tenant, []), (request.position, request.id))
            self._let_in(tenant)

    def take(self, request_id: str) -> QueuedRequest:
        """Out of the queue, to be drawn: its pictures count until ``release``."""
        request = self._remove(request_id)
        self._leave(request)
        return request

    def release(self, request: QueuedRequest) -> None:
        """What ``take`` gave is not being drawn any more."""
        if request.max_concurrent_images is not None:
            self._give_back(request)

    def withdraw(self, request_id: str) -> None:
        """Nobody waits for it any more; no error if it is not here."""
        if request_id not in self._requests:
            return
        request = self._remove(request_id)
        if not self._is_held(request):
            self._leave(request)
            self.release(request)
            return
        self._held[request.tenant_id].remove((request.position, request_id))
        self._let_in(request.tenant_id)

    def move(self, request_id: str, position: QueuePosition) -> None:
        """Another place in the order."""
        request = self._requests[request_id]
        moved = self._requests[request_id] = replace(request, position=position)
        if self._is_held(request):
            held = self._held[request.tenant_id]
            held.remove((request.position, request_id))
            insort(held, (position, request_id))
        else:
            self._leave(request)
            self._enter(moved)

    def _remove(self, request_id: str) -> QueuedRequest:
        request = self._requests.pop(request_id)
        tenant = request.tenant_id
        del self._of[tenant][request_id]
        self.work -= request.work
        self._work[tenant] -= request.work
        if not self._of[tenant]:
            del self._of[tenant], self._work[tenant]
        return request

    def _enter(self, request: QueuedRequest) -> None:
        insort(self._groups.setdefault(request.group, []), (request.position, request.id))

    def _leave(self, request: QueuedRequest) -> None:
        group = self._groups[request.group]
        del group[bisect_left(group, (request.position, request.id))]
        if not group:
            del self._groups[request.group]

    def _is_held(self, request: QueuedRequest) -> bool:
        return (request.position, request.id) in self._held.get(request.tenant_id, ())

    def _give_back(self, request: QueuedRequest) -> None:
        self._taken[request.tenant_id] -= request.images
        self._let_in(request.tenant_id)

    def _let_in(self, tenant: str) -> None:
        """Of what is held back, what there is room for now."""
        held, taken = self._held.get(tenant, []), self._taken.pop(tenant, 0)
        while held:
            following = self._requests[held[0][1]]
            most = following.max_concurrent_images
            if most is not None and taken and taken + following.images > most:
                break
            del held[0]
            taken += following.images
            self._enter(following)
        if not held:
            self._held.pop(tenant, None)
        if taken:
            self._taken[tenant] = taken
