"""The GPU tier's accounting; values are only sizes."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.device_tier import DeviceLease, DeviceTier
from orchestrator.errors import TierFull, TooLargeForTier


def test_eviction_happens_before_loading_and_oldest_first() -> None:
    tier: DeviceTier[str] = DeviceTier(10)
    for name in "ab":
        tier.admit(name, 4, lambda: "x")[0].release()
    lease = tier.lease("a")
    assert lease is not None
    lease.release()
    used: list[int] = []
    tier.admit("c", 4, lambda: used.append(tier.used_bytes) or "x")[0].release()  # type: ignore[func-returns-value]
    assert used == [8]
    assert set(tier.resident()) == {"a", "c"}


def test_nothing_is_evicted_when_that_would_not_be_enough() -> None:
    tier: DeviceTier[str] = DeviceTier(10)
    held, _ = tier.admit("a", 6, lambda: "x")
    tier.admit("b", 4, lambda: "x")[0].release()
    with pytest.raises(TierFull):
        tier.admit("c", 8, lambda: "x")
    assert set(tier.resident()) == {"a", "b"}
    with pytest.raises(TooLargeForTier):
        tier.admit("c", 11, lambda: "x")
    held.release()


def test_a_failed_load_leaves_no_bytes() -> None:
    tier: DeviceTier[str] = DeviceTier(10)

    def broken() -> str:
        raise MemoryError

    with pytest.raises(MemoryError):
        tier.admit("a", 6, broken)
    assert tier.used_bytes == 0
    tier.check_integrity()


def test_two_threads_load_once() -> None:
    tier: DeviceTier[str] = DeviceTier(10)
    loading, go = threading.Event(), threading.Event()
    loads: list[int] = []

    def load() -> str:
        loads.append(1)
        loading.set()
        assert go.wait(30)
        return "x"

    def admit() -> None:
        tier.admit("a", 6, load)[0].release()

    first, second = threading.Thread(target=admit), threading.Thread(target=admit)
    first.start()
    assert loading.wait(30)
    second.start()
    go.set()
    first.join()
    second.join()
    assert loads == [1]
    tier.check_integrity()


class DeviceTierMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tier: DeviceTier[int] = DeviceTier(100)
        self.leases: list[DeviceLease[int]] = []

    @rule(key=st.sampled_from("abcdef"), size=st.integers(1, 60), fails=st.booleans())
    def admit(self, key: str, size: int, fails: bool) -> None:
        def load() -> int:
            if fails:
                raise RuntimeError
            return size

        try:
            lease, _ = self.tier.admit(key, size, load)
        except (RuntimeError, TierFull):
            return
        self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(index=st.integers(0, 100))
    def release(self, index: int) -> None:
        self.leases.pop(index % len(self.leases)).release()

    @invariant()
    def accounting_is_consistent(self) -> None:
        self.tier.check_integrity()
        assert {lease.key for lease in self.leases} <= set(self.tier.resident())


TestDeviceTierMachine = DeviceTierMachine.TestCase
TestDeviceTierMachine.settings = settings(max_examples=50, deadline=None)
