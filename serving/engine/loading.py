"""From a canonical file into slabs, about as fast as the medium gives the bytes.

Where the bytes are already what the slab holds, readers put them straight into it, side by
side, into huge pages (a fresh page costs more than the bytes that go into it). Otherwise
they go through a ring of staging buffers, pinned where there is CUDA: while one is copied
to the device, the next are being read.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch

from assets.formats.tensors import TORCH_DTYPES, TensorFile
from assets.skeleton import Shape

#: Readers side by side; more do not help a disk, and memory has room for two.
_READERS = 2
_CHUNK_BYTES = 8 << 20
#: Staging buffers: one that is copied, one that is full, one for each reader.
_RING = 2 + _READERS
_STAGING_BYTES = 16 << 20
#: Smaller ones have nothing to gain.
_HUGE_BYTES = 4 << 20

_readers = ThreadPoolExecutor(_READERS, thread_name_prefix="load")


def prefer_huge_pages(tensor: torch.Tensor) -> None:
    """For memory of the CPU that is about to be filled. A hint; where it is not taken, slower."""
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


def fill_slab(file: TensorFile, names: tuple[str, ...], slab: torch.Tensor) -> None:
    """``slab`` ([n, *shape]) from the ``n`` tensors of that shape, in that order.

    Raises:
        KeyError: the file lacks one of them. OSError: it is shorter than its header says.
    """
    infos = [file.header.tensors[name] for name in names]
    same = all(info.dtype == infos[0].dtype for info in infos)
    if not same or any(a.end != b.begin for a, b in pairwise(infos)):
        for row, name in enumerate(names):
            slab[row].copy_(file.read(name))
        return
    begin, end = infos[0].begin, infos[-1].end
    dtype = TORCH_DTYPES[infos[0].dtype]
    if slab.device.type == "cpu" and slab.dtype == dtype and slab.is_contiguous():
        _straight(file, begin, end, slab)
    else:
        _staged(file, begin, end, dtype, infos[0].shape, slab)


def _straight(file: TensorFile, begin: int, end: int, slab: torch.Tensor) -> None:
    target = memoryview(slab.view(-1).view(torch.uint8).numpy().data)
    futures = [
        _readers.submit(file.fill, target[at - begin : stop - begin], at, stop)
        for at, stop in _chunks(begin, end, _CHUNK_BYTES)
    ]
    for future in futures:
        future.result()


def _staged(
    file: TensorFile,
    begin: int,
    end: int,
    dtype: torch.dtype,
    shape: Shape,
    slab: torch.Tensor,
) -> None:
    row_bytes = max(1, (end - begin) // max(1, len(slab)))
    rows = max(1, _STAGING_BYTES // row_bytes)
    pinned = slab.device.type == "cuda"
    free = deque(
        torch.empty(rows * row_bytes, dtype=torch.uint8, pin_memory=pinned)
        for _ in range(min(_RING, -(-len(slab) // rows)))
    )
    coming: deque[tuple[int, int, torch.Tensor, Future[None]]] = deque()
    leaving: deque[tuple[torch.Tensor, Any]] = deque()
    starts = iter(range(0, len(slab), rows))
    more = True
    while more or coming:
        while more and (free or leaving):
            first = next(starts, None)
            if first is None:
                more = False
                break
            if not free:
                buffer, copied = leaving.popleft()
                copied.synchronize()
                free.append(buffer)
            buffer = free.popleft()
            count = min(rows, len(slab) - first)
            at = begin + first * row_bytes
            view = memoryview(buffer.numpy().data)[: count * row_bytes]
            future = _readers.submit(file.fill, view, at, at + count * row_bytes)
            coming.append((first, count, buffer, future))
        if not coming:
            break
        first, count, buffer, future = coming.popleft()
        future.result()
        source = buffer[: count * row_bytes].view(dtype).view(count, *shape)
        target = slab[first : first + count]
        if not pinned:
            target.copy_(source)
            free.append(buffer)
            continue
        if dtype == slab.dtype and target.is_contiguous():
            target.copy_(source, non_blocking=True)
        else:  # bytes over the bus as they are; what they become is the device's work
            target.copy_(source.to(slab.device, non_blocking=True))
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        leaving.append((buffer, event))
    for _, copied in leaving:
        copied.synchronize()


def _chunks(begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    for at in range(begin, end, size):
        yield at, min(at + size, end)
