"""A thread pool that serves tenants in turn: a backlog delays no other tenant."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

log = logging.getLogger(__name__)


class TenantPool:
    """Runs at most ``workers`` calls, ``per_tenant`` of one tenant.

    A key submitted again while queued runs once; while running, once more.
    """

    def __init__(self, name: str, workers: int, per_tenant: int) -> None:
        self._per_tenant = per_tenant
        self._queues: OrderedDict[str, deque[tuple[str, Callable[[], object]]]] = OrderedDict()
        self._running: Counter[str] = Counter()
        self._queued_keys: set[str] = set()
        self._running_keys: set[str] = set()
        self._resubmitted: dict[str, tuple[str, Callable[[], object]]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True)
            for index in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, tenant_id: str, key: str, call: Callable[[], object]) -> None:
        with self._changed:
            if key in self._running_keys:  # its input may have changed
                self._resubmitted[key] = (tenant_id, call)
            if key in self._queued_keys or key in self._running_keys or self._closed:
                return
            self._queued_keys.add(key)
            self._queues.setdefault(tenant_id, deque()).append((key, call))
            self._changed.notify()

    def _next(self) -> tuple[str, str, Callable[[], object]] | None:
        for tenant_id, queue in self._queues.items():
            if self._running[tenant_id] < self._per_tenant:
                key, call = queue.popleft()
                if queue:
                    self._queues.move_to_end(tenant_id)
                else:
                    del self._queues[tenant_id]
                return tenant_id, key, call
        return None

    def _work(self) -> None:
        while True:
            with self._changed:
                while (job := self._next()) is None and not self._closed:
                    self._changed.wait()
                if job is None or self._closed:
                    return
                tenant_id, key, call = job
                self._running[tenant_id] += 1
                self._queued_keys.discard(key)
                self._running_keys.add(key)
            try:
                call()
            except Exception:
                log.exception("%s failed", key)
            with self._changed:
                self._running[tenant_id] -= 1
                self._running_keys.discard(key)
                resubmitted = self._resubmitted.pop(key, None)
                self._changed.notify_all()
            if resubmitted is not None:
                self.submit(resubmitted[0], key, resubmitted[1])

    def close(self) -> None:
        """Wait for running calls; drop queued ones."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
