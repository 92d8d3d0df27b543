"""The queue of one pool, in fair order within each checkpoint."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import replace
from math import inf

from router.request import QueuedRequest, QueuePosition

_Entry = tuple[QueuePosition, str]


class Queue:
    """Mutable. Of a tenant whose plan limits concurrent images, only that many enter the groups;
    the rest are held back, in order. A small request never overtakes the first."""

    def __init__(self) -> None:
        self._requests: dict[str, QueuedRequest] = {}
        self._groups: dict[str, list[_Entry]] = {}
        self._held: dict[str, list[_Entry]] = {}
        #: In the groups or generating, by limited tenant.
        self._concurrent_images: dict[str, int] = {}
        self.work = 0.0
        self._work_by_tenant: dict[str, float] = {}
        self._by_tenant: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(self._requests.values())

    @property
    def held(self) -> int:
        return sum(map(len, self._held.values()))

    def get(self, request_id: str) -> QueuedRequest | None:
        return self._requests.get(request_id)

    def count_of(self, tenant_id: str) -> int:
        return len(self._by_tenant.get(tenant_id, ()))

    def of(self, tenant_id: str) -> list[QueuedRequest]:
        """Return the tenant's requests in order of arrival."""
        return [self._requests[request_id] for request_id in self._by_tenant.get(tenant_id, ())]

    def is_deprioritized(self, tenant_id: str) -> bool:
        """Return whether the tenant's first request, which must exist, is deprioritized."""
        return self._requests[next(iter(self._by_tenant[tenant_id]))].is_deprioritized

    def work_by_tenant(self) -> dict[str, float]:
        """Do not modify the result."""
        return self._work_by_tenant

    @property
    def groups(self) -> dict[str, list[_Entry]]:
        """The (position, request ID) pairs of each requested checkpoint, in order."""
        return self._groups

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
        tenant = request.tenant_id
        self._requests[request.id] = request
        self.work += request.work
        self._work_by_tenant[tenant] = self._work_by_tenant.get(tenant, 0.0) + request.work
        self._by_tenant.setdefault(tenant, {})[request.id] = None
        if request.max_concurrent_images is None:
            self._enter(request)
        else:
            insort(self._held.setdefault(tenant, []), (request.position, request.id))
            self._admit_held(tenant)

    def take(self, request_id: str) -> QueuedRequest:
        """Remove a request to run it; its images count against the limit until ``release``."""
        request = self._remove(request_id)
        self._leave(request)
        return request

    def release(self, request: QueuedRequest) -> None:
        if request.max_concurrent_images is not None:
            self._release_images(request)

    def withdraw(self, request_id: str) -> None:
        """Remove a request, if queued."""
        if request_id not in self._requests:
            return
        request = self._remove(request_id)
        if not self._is_held(request):
            self._leave(request)
            self.release(request)
            return
        self._held[request.tenant_id].remove((request.position, request_id))
        self._admit_held(request.tenant_id)

    def move(self, request_id: str, position: QueuePosition) -> None:
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
        del self._by_tenant[tenant][request_id]
        self.work -= request.work
        self._work_by_tenant[tenant] -= request.work
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant], self._work_by_tenant[tenant]
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

    def _release_images(self, request: QueuedRequest) -> None:
        self._concurrent_images[request.tenant_id] -= request.images
        self._admit_held(request.tenant_id)

    def _admit_held(self, tenant: str) -> None:
        held, taken = self._held.get(tenant, []), self._concurrent_images.pop(tenant, 0)
        while held:
            request = self._requests[held[0][1]]
            limit = request.max_concurrent_images
            if limit is not None and taken and taken + request.images > limit:
                break
            del held[0]
            taken += request.images
            self._enter(request)
        if not held:
            self._held.pop(tenant, None)
        if taken:
            self._concurrent_images[tenant] = taken
