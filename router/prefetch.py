"""Prefetching: predicts a tenant's next assets from its earlier ones.

When a tenant returns after a pause, the assets it used last are prefetched.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from cachetools import LRUCache

from assets.content import Blob

_MAX_TENANTS, _MAX_ASSETS = 10_000, 8


class Prefetcher:
    """Mutable. Predicts up to ``depth`` assets per return and ``budget_bytes`` per minute; with a
    precision below ``least_precision``, at one return in ten, to keep measuring."""

    def __init__(
        self,
        session_s: float = 1800.0,
        depth: int = 1,
        budget_bytes: int = 2 << 30,
        least_precision: float = 0.1,
    ) -> None:
        self._session_s = session_s
        self._depth = depth
        self._budget_bytes = budget_bytes
        self._least_precision = least_precision
        self._recent: LRUCache[str, tuple[float, OrderedDict[str, Blob]]] = LRUCache(_MAX_TENANTS)
        self._pending: OrderedDict[str, float] = OrderedDict()  # key → time
        self._outcomes: deque[bool] = deque(maxlen=100)
        self._attempts = 0
        self._spent: deque[tuple[float, int]] = deque()
        self.guessed = self.came_true = 0

    @property
    def precision(self) -> float:
        """Share of the last 100 settled predictions that came true."""
        return sum(self._outcomes) / len(self._outcomes) if self._outcomes else 0.0

    def record_request(self, tenant_id: str, extras: Iterable[Blob], now_s: float) -> list[Blob]:
        """Record a request; return further blobs to prefetch."""
        while self._pending and next(iter(self._pending.values())) < now_s - self._session_s:
            self._pending.popitem(last=False)
            self._outcomes.append(False)
        chosen = {blob.key: blob for blob in extras}
        for key in chosen:
            if self._pending.pop(key, None) is not None:
                self.came_true += 1
                self._outcomes.append(True)
        last_s, recent = self._recent.get(tenant_id, (now_s, OrderedDict[str, Blob]()))
        guesses = []
        if now_s - last_s > self._session_s:
            candidates = [blob for key, blob in reversed(recent.items()) if key not in chosen]
            guesses = self._allowed(candidates[: self._depth], now_s)
        for key, blob in chosen.items():
            recent[key] = blob
            recent.move_to_end(key)
        while len(recent) > _MAX_ASSETS:
            recent.popitem(last=False)
        self._recent[tenant_id] = now_s, recent
        return guesses

    def _allowed(self, candidates: list[Blob], now_s: float) -> list[Blob]:
        self._attempts += 1
        is_imprecise = len(self._outcomes) == self._outcomes.maxlen and (
            self.precision < self._least_precision
        )
        if is_imprecise and self._attempts % 10:
            return []
        while self._spent and self._spent[0][0] < now_s - 60:
            self._spent.popleft()
        left_bytes = self._budget_bytes - sum(size for _, size in self._spent)
        allowed = []
        for blob in candidates:
            if blob.size_bytes <= left_bytes:
                left_bytes -= blob.size_bytes
                allowed.append(blob)
                self._spent.append((now_s, blob.size_bytes))
                self.guessed += 1
                self._pending[blob.key] = now_s
                self._pending.move_to_end(blob.key)
        return allowed
