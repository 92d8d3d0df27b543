"""The GPU tier: leased, opaque values under a byte budget."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from threading import Condition
from typing import Generic, TypeVar

from orchestrator.errors import TierFull, TooLargeForTier
from orchestrator.eviction import SHARE, victims
from orchestrator.policy_selection import PolicySelector

V = TypeVar("V")


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    size_bytes: int
    leases: int = 0
    pinned: bool = False
    forgotten: bool = False


class DeviceLease(Generic[V]):
    """Keeps the value resident until released. Release is idempotent."""

    def __init__(self, tier: DeviceTier[V], key: str, value: V) -> None:
        self._tier: DeviceTier[V] | None = tier
        self.key = key
        self.value = value

    def release(self) -> None:
        if self._tier is not None:
            self._tier.release(self.key)
            self._tier = None

    def __enter__(self) -> DeviceLease[V]:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class DeviceTier(Generic[V]):
    """Evicts before it loads; loading reserves the bytes and does not hold the lock. Thread-safe.

    ``tenant_id`` is empty for the platform itself.
    """

    def __init__(
        self,
        budget_bytes: int,
        name: str = "gpu",
        *,
        clock: Callable[[], float] = time.monotonic,
        share: float = SHARE,
        dropped: Callable[[V], None] | None = None,
    ) -> None:
        """``dropped`` is called with each evicted value."""
        self.name = name
        self._dropped = dropped
        self.budget_bytes = budget_bytes
        self._share = share
        self._clock = clock
        self.policy_selector = PolicySelector(budget_bytes)
        self._entries: dict[str, _Entry[V]] = {}
        self._resident_bytes = 0
        self._loading: dict[str, int] = {}
        self._changed = Condition()

    def __repr__(self) -> str:
        return (
            f"<{self.name} tier: {len(self._entries)} values, {self.used_bytes} of "
            f"{self.budget_bytes} bytes, {sum(e.leases for e in self._entries.values())} leases>"
        )

    @property
    def used_bytes(self) -> int:
        return self._resident_bytes + sum(self._loading.values())

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def lease(self, key: str, tenant_id: str = "") -> DeviceLease[V] | None:
        """None if not resident."""
        with self._changed:
            return self._lease_resident(key, tenant_id)

    def admit(
        self, key: str, size_bytes: int, load: Callable[[], V], tenant_id: str = ""
    ) -> tuple[DeviceLease[V], bool]:
        """Lease the value, loaded if absent; return also whether it was.

        Raises:
            TooLargeForTier, TierFull: no room; nothing was loaded or evicted.
        """
        if size_bytes > self.budget_bytes:
            raise TooLargeForTier(self.name, size_bytes, self.budget_bytes)
        with self._changed:
            while key in self._loading:
                self._changed.wait()
            lease = self._lease_resident(key, tenant_id)
            if lease is not None:
                return lease, False
            self._make_room(size_bytes)
            self._loading[key] = size_bytes
        try:
            value = load()
        except BaseException:
            with self._changed:
                del self._loading[key]
                self._changed.notify_all()
            raise
        with self._changed:
            del self._loading[key]
            self._entries[key] = _Entry(value, size_bytes, leases=1)
            self.policy_selector.used(key, size_bytes, tenant_id, self._clock())
            self._resident_bytes += size_bytes
            self._changed.notify_all()
        return DeviceLease(self, key, value), True

    def _lease_resident(self, key: str, tenant_id: str) -> DeviceLease[V] | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.leases += 1
        self.policy_selector.used(key, entry.size_bytes, tenant_id, self._clock())
        return DeviceLease(self, key, entry.value)

    def _make_room(self, size_bytes: int) -> None:
        needed = self.used_bytes + size_bytes - self.budget_bytes
        if needed <= 0:
            return
        idle, owned = [], Counter[str]()
        for key, entry in self._entries.items():
            tier_entry = self.policy_selector.entry(key, entry.size_bytes)
            owned[tier_entry.tenant_id] += entry.size_bytes
            if entry.leases == 0 and not entry.pinned:
                idle.append(tier_entry)
        if sum(tier_entry.size_bytes for tier_entry in idle) < needed:
            raise TierFull(self.name, size_bytes, self.budget_bytes)
        del owned[""]
        for key in victims(
            idle, needed, self.budget_bytes, self._share, owned,
            self._clock(), self.policy_selector.session_bytes,
        ):  # fmt: skip
            self._drop(key)

    def release(self, key: str) -> None:
        with self._changed:
            entry = self._entries[key]
            entry.leases -= 1
            if entry.forgotten and entry.leases == 0:
                self._drop(key)

    def forget(self, key: str) -> None:
        """Drop a value, pinned or not, when its last lease ends."""
        with self._changed:
            self.policy_selector.forget(key)
            entry = self._entries.get(key)
            if entry is not None:
                entry.forgotten = True
                if entry.leases == 0:
                    self._drop(key)

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key)
        self._resident_bytes -= entry.size_bytes
        if self._dropped is not None:
            self._dropped(entry.value)

    def evict_idle(self) -> int:
        """Drop values neither leased nor pinned; return the bytes freed."""
        with self._changed:
            before = self._resident_bytes
            idle = [k for k, e in self._entries.items() if e.leases == 0 and not e.pinned]
            for key in idle:
                self._drop(key)
            return before - self._resident_bytes

    def pin(self, key: str, pinned: bool = True) -> None:
        """Raises KeyError if not resident."""
        with self._changed:
            self._entries[key].pinned = pinned

    def pin_exactly(self, keys: Collection[str]) -> None:
        """Pin the residents among ``keys``, up to half of the budget; unpin others."""
        with self._changed:
            left_bytes = self.budget_bytes // 2
            for key, entry in self._entries.items():
                entry.pinned = key in keys and entry.size_bytes <= left_bytes
                left_bytes -= entry.size_bytes if entry.pinned else 0

    def resident(self) -> dict[str, int]:
        """Return key → size in bytes."""
        with self._changed:
            return {key: entry.size_bytes for key, entry in self._entries.items()}

    def check_integrity(self) -> None:
        """Raise AssertionError if the accounting is inconsistent."""
        with self._changed:
            total = sum(entry.size_bytes for entry in self._entries.values())
            assert total == self._resident_bytes, repr(self)
            assert self.used_bytes <= self.budget_bytes, repr(self)
            assert all(entry.leases >= 0 for entry in self._entries.values()), repr(self)
