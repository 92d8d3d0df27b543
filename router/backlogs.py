"""What each tenant has queued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.request import QueuedRequest


class Backlogs:
    """Requests and work by tenant. Mutable; the queue reports every change."""

    def __init__(self) -> None:
        self.work = 0.0
        self._work: dict[str, float] = {}
        self._requests: dict[str, dict[str, QueuedRequest]] = {}

    def add(self, request: QueuedRequest) -> None:
        tenant = request.tenant_id
        self.work += request.work
        self._work[tenant] = self._work.get(tenant, 0.0) + request.work
        self._requests.setdefault(tenant, {})[request.id] = request

    def remove(self, request: QueuedRequest) -> None:
        tenant = request.tenant_id
        del self._requests[tenant][request.id]
        self.work -= request.work
        self._work[tenant] -= request.work
        if not self._requests[tenant]:
            del self._requests[tenant], self._work[tenant]

    def replace(self, request: QueuedRequest) -> None:
        """A request has another position."""
        self._requests[request.tenant_id][request.id] = request

    @property
    def work_by_tenant(self) -> Mapping[str, float]:
        return self._work

    def count_of(self, tenant_id: str) -> int:
        return len(self._requests.get(tenant_id, ()))

    def of(self, tenant_id: str) -> Sequence[QueuedRequest]:
        """The tenant's requests in order of arrival."""
        return tuple(self._requests.get(tenant_id, {}).values())

    def is_deprioritized(self, tenant_id: str) -> bool:
        """Whether the tenant's first request, which must exist, is deprioritized."""
        return next(iter(self._requests[tenant_id].values())).is_deprioritized
