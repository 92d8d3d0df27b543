"""Reading and writing safetensors one tensor at a time, so that memory stays flat.

The library's ``save_file`` wants every tensor in memory and its reader maps the
file; a multi-gigabyte conversion must hold neither.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from assets.formats.header import DTYPE_BYTES, Header, read_header
from assets.skeleton import Shape

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class TensorFile:
    """An open safetensors file; ``read`` brings one tensor into memory of its own."""

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
        """The tensor ``name``, on the CPU, in the file's own type."""
        info = self.header.tensors[name]
        buffer = bytearray(info.end - info.begin)
        self.read_bytes_into(name, memoryview(buffer))
        return torch.frombuffer(buffer, dtype=TORCH_DTYPES[info.dtype]).reshape(info.shape)

    def read_bytes_into(self, name: str, target: memoryview) -> None:
        """Fill ``target`` (exactly the tensor's bytes) without a copy in between."""
        info = self.header.tensors[name]
        offset = self.header.data_offset + info.begin
        done = 0
        while done < len(target):
            count = os.preadv(self._file.fileno(), [target[done:]], offset + done)
            if count == 0:
                raise OSError(f"{self._file.name} ended within tensor {name!r}")
            done += count


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be written: its type and shape now, its values when its turn comes."""

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
class Written:
    sha256: str
    size_bytes: int


def write_tensors(
    path: Path, tensors: Mapping[str, Planned], metadata: Mapping[str, str]
) -> Written:
    """Write a safetensors file tensor by tensor, in name order; the digest comes for free."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name, planned in sorted(tensors.items()):
        end = position + planned.size_bytes
        header[name] = {
            "dtype": planned.dtype,
            "shape": list(planned.shape),
            "data_offsets": [position, end],
        }
        position = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # tensors start aligned
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for chunk in (len(raw).to_bytes(8, "little"), raw):
            digest.update(chunk)
            file.write(chunk)
        for name, planned in sorted(tensors.items()):
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
    return Written(digest.hexdigest(), 8 + len(raw) + position)
