"""What a tenant will ask for next: guessed from what it asked for before, and checked.

Tenants work in sessions and go back to what they had. When one returns after a pause, what it
used last beside what it asks for now is worth bringing near, as long as enough
of such guesses come true.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from cachetools import LRUCache

from assets.content import Blob

#: How many tenants, and how many assets of each, are remembered.
_TENANTS, _ASSETS = 10_000, 8


class Prefetcher:
    """Mutable: what each tenant used last, which guesses are open, how many came true.

    ``depth`` guesses at a return, of ``budget_bytes`` a minute at most; none while fewer than
    ``least_precision`` of the last hundred came true, but for one in ten to try again.
    """

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
        self._last: LRUCache[str, tuple[float, OrderedDict[str, Blob]]] = LRUCache(_TENANTS)
        self._open: OrderedDict[str, float] = OrderedDict()  # key → when it was guessed
        self._verdicts: deque[bool] = deque(maxlen=100)
        self._tried = 0
        self._spent: deque[tuple[float, int]] = deque()
        self.guessed = self.came_true = 0

    @property
    def precision(self) -> float:
        """Of the guesses that were settled lately, how many came true."""
        return sum(self._verdicts) / len(self._verdicts) if self._verdicts else 0.0

    def asked(self, tenant_id: str, extras: Iterable[Blob], now_s: float) -> list[Blob]:
        """A tenant's request arrives: what to bring near beside what it wants."""
        while self._open and next(iter(self._open.values())) < now_s - self._session_s:
            self._open.popitem(last=False)  # nobody came for it
            self._verdicts.append(False)
        wanted = {blob.key: blob for blob in extras}
        for key in wanted:
            if self._open.pop(key, None) is not None:
                self.came_true += 1
                self._verdicts.append(True)
        last_s, recent = self._last.get(tenant_id, (now_s, OrderedDict[str, Blob]()))
        guesses = []
        if now_s - last_s > self._session_s:
            likely = [blob for key, blob in reversed(recent.items()) if key not in wanted]
            guesses = self._allowed(likely[: self._depth], now_s)
        for key, blob in wanted.items():
            recent[key] = blob
            recent.move_to_end(key)
        while len(recent) > _ASSETS:
            recent.popitem(last=False)
        self._last[tenant_id] = now_s, recent
        return guesses

    def _allowed(self, likely: list[Blob], now_s: float) -> list[Blob]:
        self._tried += 1
        poor = len(self._verdicts) == self._verdicts.maxlen and (
            self.precision < self._least_precision
        )
        if poor and self._tried % 10:
            return []
        while self._spent and self._spent[0][0] < now_s - 60:
            self._spent.popleft()
        left = self._budget_bytes - sum(size for _, size in self._spent)
        allowed = []
        for blob in likely:
            if blob.size_bytes <= left:
                left -= blob.size_bytes
                allowed.append(blob)
                self._spent.append((now_s, blob.size_bytes))
                self.guessed += 1
                self._open[blob.key] = now_s
                self._open.move_to_end(blob.key)
        return allowed
