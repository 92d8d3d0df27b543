"""A blob out of the object store: ranges side by side, in time, and on from where it was cut.

What has arrived is written in order and never asked for again; a range that was cut short,
dripped or failed is asked for anew from its first missing byte.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from assets.content import Blob
from assets.errors import StoreBroke, StoreError
from assets.storage.object_paths import blob_key
from assets.storage.object_store import ObjectStore
from orchestrator.breaker import Breaker
from orchestrator.errors import SourceDown


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """How fast it must be, in bytes and seconds. A whole blob has ``grace_s`` and the time that
    it takes at ``least_bytes_s``, and so has each range."""

    range_bytes: int = 8 << 20
    at_once: int = 8
    attempts: int = 4
    least_bytes_s: float = 1 << 20
    grace_s: float = 10.0
    pause_s: float = 0.2


class BlobSource(Protocol):
    """Where blobs come from."""

    def fetch(self, blob: Blob, file: BinaryIO) -> None:
        """Write the blob's bytes, from the first to the last.

        Raises:
            SourceDown: it cannot be had from here now. StoreError: there is no such blob.
        """


class StoreSource:
    """The blobs of an object store. Threads may share it."""

    def __init__(
        self,
        store: ObjectStore,
        pace: TransferLimits | None = None,
        breaker: Breaker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._pace = pace or TransferLimits()
        self._breaker = breaker or Breaker("the object store")
        self._clock = clock
        self._readers = ThreadPoolExecutor(self._pace.at_once, thread_name_prefix="range")

    def fetch(self, blob: Blob, file: BinaryIO) -> None:
        pace = self._pace
        deadline_s = self._clock() + pace.grace_s + blob.size_bytes / pace.least_bytes_s
        self._breaker.ask()
        try:
            self._fetch(blob, file, deadline_s)
        except SourceDown:
            self._breaker.failed()
            raise
        except StoreError:
            self._breaker.answered()  # it knows what it has not
            raise
        self._breaker.answered()

    def _fetch(self, blob: Blob, file: BinaryIO, deadline_s: float) -> None:
        pace = self._pace
        starts = deque(range(0, blob.size_bytes, pace.range_bytes))
        coming: deque[Future[bytes]] = deque()
        try:
            while starts or coming:
                while starts and len(coming) < pace.at_once:
                    start = starts.popleft()
                    stop = min(start + pace.range_bytes, blob.size_bytes)
                    coming.append(self._readers.submit(self._range, blob, start, stop, deadline_s))
                file.write(coming.popleft().result())
        finally:
            for future in coming:
                future.cancel()

    def _range(self, blob: Blob, start: int, stop: int, deadline_s: float) -> bytes:
        key, pace = blob_key(blob), self._pace
        had = bytearray()
        failures = 0
        while len(had) < stop - start:
            left_s = deadline_s - self._clock()
            patience_s = min(left_s, pace.grace_s + pace.range_bytes / pace.least_bytes_s)
            if left_s <= 0:
                raise SourceDown(f"{key} did not come at {pace.least_bytes_s / 1e6:.1f} MB/s")
            try:
                data = self._store.read_range(key, start + len(had), stop, patience_s)
            except StoreBroke as error:
                data, reason = b"", error
            else:
                reason = StoreBroke(f"{len(data)} bytes of {key} instead of {stop - start}")
            if data:
                had += data
                continue
            failures += 1
            if failures >= pace.attempts:
                raise SourceDown(f"the object store failed {failures} times: {reason}")
            time.sleep(min(pace.pause_s * 2**failures, max(0.0, deadline_s - self._clock())))
        return bytes(had)
