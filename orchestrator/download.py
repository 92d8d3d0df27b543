"""Download a blob from the object store in parallel ranges, with a deadline and resumption.

Bytes are written in order; a failed range resumes at its first missing byte.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from assets.content import Blob
from assets.errors import StoreError, StoreUnavailable
from assets.storage.object_paths import blob_key
from assets.storage.object_store import ObjectStore
from orchestrator.breaker import Breaker
from orchestrator.errors import SourceDown


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """In bytes and seconds. A blob's or range's deadline is ``grace_s`` plus its time at
    ``least_bytes_s``."""

    range_bytes: int = 8 << 20
    at_once: int = 8
    attempts: int = 4
    least_bytes_s: float = 1 << 20
    grace_s: float = 10.0
    pause_s: float = 0.2


class BlobSource(Protocol):
    """A source of blobs."""

    def fetch(self, blob: Blob, file: BinaryIO) -> None:
        """Write the blob's bytes in order.

        Raises:
            SourceDown: unavailable or too slow; retry later.
            StoreError: the blob does not exist.
        """


class StoreSource:
    """Downloads blobs from an object store. Thread-safe."""

    def __init__(
        self,
        store: ObjectStore,
        limits: TransferLimits | None = None,
        breaker: Breaker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._limits = limits or TransferLimits()
        self._breaker = breaker or Breaker("the object store")
        self._clock = clock
        self._readers = ThreadPoolExecutor(self._limits.at_once, thread_name_prefix="range")

    def fetch(self, blob: Blob, file: BinaryIO) -> None:
        limits = self._limits
        deadline_s = self._clock() + limits.grace_s + blob.size_bytes / limits.least_bytes_s
        self._breaker.ask()
        try:
            self._fetch(blob, file, deadline_s)
        except SourceDown:
            self._breaker.failed()
            raise
        except StoreError:
            self._breaker.answered()  # a missing blob is a valid answer
            raise
        self._breaker.answered()

    def _fetch(self, blob: Blob, file: BinaryIO, deadline_s: float) -> None:
        limits = self._limits
        starts = deque(range(0, blob.size_bytes, limits.range_bytes))
        pending: deque[Future[bytes]] = deque()
        try:
            while starts or pending:
                while starts and len(pending) < limits.at_once:
                    start = starts.popleft()
                    stop = min(start + limits.range_bytes, blob.size_bytes)
                    pending.append(self._readers.submit(self._range, blob, start, stop, deadline_s))
                file.write(pending.popleft().result())
        finally:
            for future in pending:
                future.cancel()

    def _range(self, blob: Blob, start: int, stop: int, deadline_s: float) -> bytes:
        key, limits = blob_key(blob), self._limits
        received = bytearray()
        failures = 0
        while len(received) < stop - start:
            left_s = deadline_s - self._clock()
            timeout_s = min(left_s, limits.grace_s + limits.range_bytes / limits.least_bytes_s)
            if left_s <= 0:
                raise SourceDown(
                    f"the download of {key} is slower than the minimum of "
                    f"{limits.least_bytes_s / 1e6:.1f} MB/s"
                )
            try:
                data = self._store.read_range(key, start + len(received), stop, timeout_s)
            except StoreUnavailable as error:
                data, reason = b"", error
            else:
                reason = StoreUnavailable(f"{len(data)} bytes of {key} instead of {stop - start}")
            if data:
                received += data
                continue
            failures += 1
            if failures >= limits.attempts:
                raise SourceDown(f"the object store failed {failures} times: {reason}")
            time.sleep(min(limits.pause_s * 2**failures, max(0.0, deadline_s - self._clock())))
        return bytes(received)
