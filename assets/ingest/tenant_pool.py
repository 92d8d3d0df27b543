"""Threads that work for many tenants in turn: one tenant's thousand files are in nobody's way."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

log = logging.getLogger(__name__)


class TenantPool:
    """At most ``workers`` pieces of work at a time, ``per_tenant`` of one tenant's, and a tenant
    that was served goes to the end of the line. What is submitted again while it waits is done
    once; while it runs, once more."""

    def __init__(self, name: str, workers: int, per_tenant: int) -> None:
        self._per_tenant = per_tenant
        self._waiting: OrderedDict[str, deque[tuple[str, Callable[[], object]]]] = OrderedDict()
        self._running: Counter[str] = Counter()
        self._known: set[str] = set()  # keys of what waits
        self._busy: set[str] = set()  # and of what runs
        self._again: dict[str, tuple[str, Callable[[], object]]] = {}
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
            if key in self._busy:  # what it looked at may have changed since
                self._again[key] = (tenant_id, call)
            if key in self._known or key in self._busy or self._closed:
                return
            self._known.add(key)
            self._waiting.setdefault(tenant_id, deque()).append((key, call))
            self._changed.notify()

    def _next(self) -> tuple[str, str, Callable[[], object]] | None:
        """The first in line who may have something done; None when nobody may."""
        for tenant_id, line in self._waiting.items():
            if self._running[tenant_id] < self._per_tenant:
                key, call = line.popleft()
                if line:
                    self._waiting.move_to_end(tenant_id)
                else:
                    del self._waiting[tenant_id]
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
                self._known.discard(key)
                self._busy.add(key)
            try:
                call()
            except Exception:
                log.exception("%s broke", key)
            with self._changed:
                self._running[tenant_id] -= 1
                self._busy.discard(key)
                again = self._again.pop(key, None)
                self._changed.notify_all()
            if again is not None:
                self.submit(again[0], key, again[1])

    def close(self) -> None:
        """What runs is waited for; what waits is left for the next start."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
