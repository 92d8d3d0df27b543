"""The thread pool that serves tenants in turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from assets.ingest.tenant_pool import TenantPool


class Work:
    def __init__(self) -> None:
        self.started: list[str] = []
        self.go = threading.Event()
        self._lock = threading.Lock()

    def call(self, name: str) -> Callable[[], None]:
        def run() -> None:
            with self._lock:
                self.started.append(name)
            assert self.go.wait(30)

        return run


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_tenants_are_served_in_turn() -> None:
    pool, work = TenantPool("test", 1, 1), Work()
    pool.submit("first", "first", work.call("first"))
    until(lambda: work.started == ["first"])
    for index in range(5):
        pool.submit("many", f"many-{index}", work.call(f"many-{index}"))
    for tenant in ("one", "two"):
        pool.submit(tenant, tenant, work.call(tenant))
    work.go.set()
    until(lambda: len(work.started) == 8)
    assert work.started[:5] == ["first", "many-0", "one", "two", "many-1"]
    pool.close()


def test_one_tenant_is_limited_to_its_share_of_threads() -> None:
    pool, work = TenantPool("test", 4, 2), Work()
    for index in range(6):
        pool.submit("many", f"many-{index}", work.call(f"many-{index}"))
    until(lambda: len(work.started) == 2)
    pool.submit("one", "one", work.call("one"))
    until(lambda: "one" in work.started)
    assert len(work.started) == 3
    work.go.set()
    until(lambda: len(work.started) == 7)
    pool.close()


def test_resubmitted_keys_run_once_and_failures_do_not_stop_the_pool() -> None:
    pool, work = TenantPool("test", 1, 1), Work()

    def broken() -> None:
        raise RuntimeError("broken on purpose")

    pool.submit("t", "broken", broken)
    pool.submit("t", "first", work.call("first"))
    until(lambda: work.started == ["first"])
    for _ in range(3):
        pool.submit("t", "same", work.call("same"))  # queued: runs once
        pool.submit("t", "first", work.call("first again"))  # running: runs again
    work.go.set()
    until(lambda: len(work.started) == 3)
    until(lambda: not pool._queued_keys and not pool._running_keys)
    assert work.started == ["first", "same", "first again"]
    pool.close()
    pool.submit("t", "late", work.call("late"))
    assert len(work.started) == 3
