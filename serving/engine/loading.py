"""Loading of canonical files into stacked tensors, at about the speed of the medium.

Files are read into huge pages (page faults cost more than filling) if the tensor has their bytes,
else into a ring of staging buffers, pinned on CUDA.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise

import torch

from assets.families.schema import Shape
from assets.formats.tensors import TORCH_DTYPES, TensorFile


def _cpu_count() -> int:
    with suppress(AttributeError):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


#: A disk gains nothing from more; eight suffice for a large machine's RAM.
_READERS = min(8, max(2, _cpu_count() // 2))
_CHUNK_BYTES = 8 << 20
#: Buffers: one being copied, one full, two being read.
_RING = 4
_STAGING_BYTES = 16 << 20
#: Least size of a parallel read.
_PIECE_BYTES = 1 << 20
#: Smaller tensors gain nothing from huge pages.
_HUGE_BYTES = 4 << 20

_readers = ThreadPoolExecutor(_READERS, thread_name_prefix="load")


def prefer_huge_pages(tensor: torch.Tensor) -> None:
    """Use huge pages for an unfilled CPU tensor. Linux only."""
    size = tensor.untyped_storage().nbytes()
    if tensor.device.type != "cpu" or size < _HUGE_BYTES or sys.platform != "linux":
        return
    start = tensor.untyped_storage().data_ptr()
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (start + size - first) // mmap.PAGESIZE * mmap.PAGESIZE
    with suppress(AttributeError):
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE
        )


class StagingRing:
    """The staging buffers of one load, in one thread. Loads are complete on exit."""

    def __init__(self, device: torch.device) -> None:
        self.is_pinned = device.type == "cuda"
        self._free: list[torch.Tensor] = []
        self._copying: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        self._count = 0

    def __enter__(self) -> StagingRing:
        return self

    def __exit__(self, *_: object) -> None:
        for _buffer, copied in self._copying:
            copied.synchronize()
        self._copying.clear()

    def take(self, size_bytes: int) -> torch.Tensor | None:
        """Return a free buffer, or None if all are being filled."""
        if not self._free and self._count < _RING:
            self._count += 1
            return self._new(size_bytes)
        if not self._free and self._copying:
            buffer, copied = self._copying.popleft()
            copied.synchronize()
            self._free.append(buffer)
        if not self._free:
            return None
        buffer = self._free.pop()
        return buffer if len(buffer) >= size_bytes else self._new(size_bytes)

    def _new(self, size_bytes: int) -> torch.Tensor:
        size_bytes = max(size_bytes, _STAGING_BYTES)
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self.is_pinned)

    def give(self, buffer: torch.Tensor) -> None:
        self._free.append(buffer)

    def copying(self, buffer: torch.Tensor) -> None:
        """Give a buffer back once the stream's queued work is done."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._copying.append((buffer, event))


def fill_stack(
    file: TensorFile, names: Sequence[str], stack: torch.Tensor, ring: StagingRing
) -> None:
    """Fill ``stack`` [n, *shape] from the tensors, in order.

    On CUDA it is complete for the current stream; for all once ``ring`` exits.

    Raises:
        KeyError: the file lacks a tensor.
        OSError: the file is shorter than its header says.
    """
    infos = [file.header.tensors[name] for name in names]
    same = all(info.dtype == infos[0].dtype for info in infos)
    if not same or any(a.end != b.begin for a, b in pairwise(infos)):
        for row, name in enumerate(names):
            stack[row].copy_(file.read(name))
        return
    begin, end = infos[0].begin, infos[-1].end
    dtype = TORCH_DTYPES[infos[0].dtype]
    if begin == end:
        return
    if stack.device.type == "cpu" and stack.dtype == dtype and stack.is_contiguous():
        _fill_directly(file, begin, end, stack)
    else:
        _fill_staged(file, begin, end, dtype, infos[0].shape, stack, ring)


def _fill_directly(file: TensorFile, begin: int, end: int, stack: torch.Tensor) -> None:
    target = memoryview(stack.view(-1).view(torch.uint8).numpy().data)
    if end - begin <= _CHUNK_BYTES:  # one reader suffices
        file.fill(target, begin, end)
        return
    futures = [
        _readers.submit(
            file.fill, target[start - begin : end_of_chunk - begin], start, end_of_chunk
        )
        for start, end_of_chunk in _chunks(begin, end, _CHUNK_BYTES)
    ]
    for future in futures:
        future.result()


def _fill_staged(
    file: TensorFile,
    begin: int,
    end: int,
    dtype: torch.dtype,
    shape: Shape,
    stack: torch.Tensor,
    ring: StagingRing,
) -> None:
    row_bytes = (end - begin) // len(stack)
    rows = min(len(stack), max(1, _STAGING_BYTES // row_bytes))
    pending: deque[tuple[int, int, torch.Tensor, list[Future[None]]]] = deque()
    starts = deque(range(0, len(stack), rows))
    while starts or pending:
        while starts and (buffer := ring.take(rows * row_bytes)) is not None:
            first = starts.popleft()
            count = min(rows, len(stack) - first)
            reading = _read_into(buffer, file, begin + first * row_bytes, count * row_bytes)
            pending.append((first, count, buffer, reading))
        first, count, buffer, reading = pending.popleft()
        for future in reading:
            future.result()
        source = buffer[: count * row_bytes].view(dtype).view(count, *shape)
        target = stack[first : first + count]
        if not ring.is_pinned:
            target.copy_(source)
            ring.give(buffer)
            continue
        if dtype == stack.dtype and target.is_contiguous():
            target.copy_(source, non_blocking=True)
        else:  # the device converts
            target.copy_(source.to(stack.device, non_blocking=True))
        ring.copying(buffer)


def _read_into(
    buffer: torch.Tensor, file: TensorFile, begin: int, size_bytes: int
) -> list[Future[None]]:
    view = memoryview(buffer.numpy().data)
    piece = max(_PIECE_BYTES, -(-size_bytes // _READERS))
    return [
        _readers.submit(file.fill, view[start : start + size], begin + start, begin + start + size)
        for start in range(0, size_bytes, piece)
        for size in (min(piece, size_bytes - start),)
    ]


def _chunks(begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(begin, end, size):
        yield start, min(start + size, end)
