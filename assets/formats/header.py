"""Strict safetensors header parser, used before any tensor is loaded.

It refuses files that two readers could interpret differently. Layout:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.errors import HeaderError
from assets.families.schema import Shape
from assets.formats.signature import SIGNATURE_BYTES, describe
from assets.text import is_storable

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
MAX_NAME_CHARS = 512
MAX_RANK = 8

DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """``begin`` and ``end`` are byte offsets into the data section."""

    dtype: str
    shape: Shape
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """``metadata`` is untrusted; ``markers`` are empty tensors, used as flags."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_offset: int
    markers: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: info.shape for name, info in self.tensors.items()}


def read_header(path: Path) -> Header:
    """Read and check a file's header.

    Raises:
        HeaderError: not a strict safetensors file.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise HeaderError(f"not a safetensors file: {size} bytes, no header")
        length = int.from_bytes(prefix, "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            description = describe(prefix + file.read(SIGNATURE_BYTES - 8))
            if description is not None:
                raise HeaderError(f"not a safetensors file: {description}")
            raise HeaderError(
                f"not a safetensors file, or truncated: the header length is {length} bytes in a "
                f"file of {size} (at most {MAX_HEADER_BYTES} are accepted)"
            )
        raw = file.read(length)
    return parse_header(raw, data_bytes=size - 8 - length)


def parse_header(raw: bytes, data_bytes: int) -> Header:
    """Parse and check the JSON header ``raw``.

    Raises:
        HeaderError: malformed, or does not match ``data_bytes``.
    """
    if not raw.startswith(b"{"):
        raise HeaderError("the header does not begin with '{'")
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"the header is not JSON: {error}") from None
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderError("__metadata__ must map strings to strings")
    if not all(is_storable(text) for pair in metadata.items() for text in pair):
        raise HeaderError("__metadata__ contains a NUL or an unpaired surrogate")
    if not document:
        raise HeaderError("the file contains no tensors")
    if len(document) > MAX_TENSORS:
        raise HeaderError(f"{len(document)} tensors; at most {MAX_TENSORS} are accepted")
    entries = {name: _tensor(name, value) for name, value in document.items()}
    _check_contiguous(entries, data_bytes)
    tensors = {name: info for name, info in entries.items() if info.end > info.begin}
    if not tensors:
        raise HeaderError("all tensors in the file are empty")
    markers = tuple(name for name in entries if name not in tensors)
    return Header(tensors, metadata, 8 + len(raw), markers)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise HeaderError(
            "the header contains a duplicate key; readers would disagree on its value"
        )
    return result


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _tensor(name: str, value: object) -> TensorInfo:
    if len(name) > MAX_NAME_CHARS or not is_storable(name):
        raise HeaderError(
            f"tensor name is too long, contains a NUL or is not valid Unicode: {name[:60]!a}"
        )
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"tensor {name!r} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in DTYPE_BYTES:
        accepted = ", ".join(DTYPE_BYTES)
        raise HeaderError(f"tensor {name!r} has dtype {dtype!r}; accepted: {accepted}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_count, shape)):
        raise HeaderError(f"tensor {name!r} has a malformed shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise HeaderError(f"tensor {name!r} has malformed data_offsets")
    size = DTYPE_BYTES[dtype]
    for extent in shape:
        size *= extent
    begin, end = offsets
    if end - begin != size:
        raise HeaderError(f"tensor {name!r} spans {end - begin} bytes; its shape needs {size}")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _check_contiguous(tensors: Mapping[str, TensorInfo], data_bytes: int) -> None:
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            raise HeaderError(f"tensor {name!r} overlaps another or leaves a gap before it")
        position = info.end
    if position != data_bytes:
        raise HeaderError(
            f"the tensors end at byte {position} of {data_bytes}: truncated or padded"
        )
