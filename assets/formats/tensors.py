"""Read and write safetensors one tensor at a time, so that memory use stays constant.

The library's ``save_file`` holds every tensor, and its reader maps the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from assets.families.schema import Shape
from assets.formats.header import DTYPE_BYTES, Header, read_header

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
#: Accepted weight dtypes → canonical ones. float16 represents every 8-bit value; no engine computes
#: in float64.
CANONICAL_FLOATS: Mapping[str, str] = {
    "F64": "F32", "F32": "F32", "F16": "F16", "BF16": "BF16", "F8_E4M3": "F16", "F8_E5M2": "F16",
}  # fmt: skip
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


_READ_AHEAD_BYTES = 32 << 20


class TensorFile:
    """An open safetensors file; each ``read`` returns a copy."""

    def __init__(self, path: Path) -> None:
        self.header: Header = read_header(path)
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self.header.tensors

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU, in the file's dtype."""
        return self.read_stacked([name])[0]

    def read_weights(self, name: str) -> torch.Tensor:
        """As ``read``, in the canonical dtype."""
        canonical = CANONICAL_FLOATS[self.header.tensors[name].dtype]
        return self.read(name).to(TORCH_DTYPES[canonical])

    def read_stacked(self, names: Sequence[str]) -> torch.Tensor:
        """Return n tensors of one shape as [n, *shape]; one read if adjacent in the file."""
        infos = [self.header.tensors[name] for name in names]
        first, last = infos[0], infos[-1]
        adjacent = all(a.end == b.begin for a, b in pairwise(infos))
        if not adjacent or any(info.dtype != first.dtype for info in infos):
            return torch.stack([self.read(name) for name in names])
        shape = (len(names), *first.shape)
        stack = torch.empty(shape, dtype=TORCH_DTYPES[first.dtype])
        if stack.numel():
            view = stack.view(-1).view(torch.uint8).numpy()
            self.fill(view.data, first.begin, last.end)
        return stack

    def fileno(self) -> int:
        return self._file.fileno()

    def fill(self, target: memoryview, begin: int, end: int) -> None:
        """Read data bytes ``begin`` to ``end`` into ``target`` of that length. Thread-safe.

        Raises:
            OSError: the file is shorter than its header states.
        """
        offset, done = self.header.data_offset + begin, 0
        with suppress(OSError):
            os.posix_fadvise(
                self.fileno(), offset + end - begin, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED
            )
        while done < end - begin:
            count = os.preadv(self._file.fileno(), [target[done:]], offset + done)
            if count == 0:
                raise OSError(f"{self._file.name} ends within its tensor data")
            done += count


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to write; ``values`` is called then."""

    dtype: str
    shape: Shape
    values: Callable[[], torch.Tensor]

    @property
    def size_bytes(self) -> int:
        size = DTYPE_BYTES[self.dtype]
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """Digest and size of a written file."""

    sha256: str
    size_bytes: int


def write_tensors(
    path: Path,
    tensors: Mapping[str, PlannedTensor],
    metadata: Mapping[str, str],
    order: Sequence[str] | None = None,
) -> WrittenFile:
    """Write a safetensors file tensor by tensor, in ``order`` or sorted by name.

    Raises:
        ValueError: ``order`` has a wrong length, or values do not match the plan.
    """
    names = sorted(tensors) if order is None else order
    if len(names) != len(tensors):
        raise ValueError(f"order has {len(names)} names for {len(tensors)} tensors")
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name in names:
        planned = tensors[name]
        end = position + planned.size_bytes
        header[name] = {
            "dtype": planned.dtype,
            "shape": list(planned.shape),
            "data_offsets": [position, end],
        }
        position = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # aligns the data to 8 bytes
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for chunk in (len(raw).to_bytes(8, "little"), raw):
            digest.update(chunk)
            file.write(chunk)
        for name in names:
            planned = tensors[name]
            tensor = planned.values().contiguous()
            if tuple(tensor.shape) != planned.shape or tensor.dtype != TORCH_DTYPES[planned.dtype]:
                raise ValueError(
                    f"{name}: planned {planned.dtype} {planned.shape}, "
                    f"got {tensor.dtype} {tuple(tensor.shape)}"
                )
            data = tensor.reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return WrittenFile(digest.hexdigest(), 8 + len(raw) + position)
