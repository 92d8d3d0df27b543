"""The strict header parser against hostile and broken files."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from assets.errors import HeaderError
from assets.formats.header import parse_header, read_header
from assets.formats.tensors import PlannedTensor, TensorFile, write_tensors


def tensor(begin: int = 0, end: int = 4, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> str:
    return json.dumps({"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]})


@pytest.mark.parametrize(
    ("header", "data_bytes", "reason"),
    [
        (f'{{"a": {tensor()}, "a": {tensor()}}}', 4, "duplicate key"),
        (f'{{"__metadata__": {{"x": "1", "x": "2"}}, "a": {tensor()}}}', 4, "duplicate key"),
        (f'{{"__metadata__": {{"x": 1}}, "a": {tensor()}}}', 4, "strings"),
        (f'{{"__metadata__": {{"x": "\\ud800"}}, "a": {tensor()}}}', 4, "unpaired surrogate"),
        (f'{{"__metadata__": {{"x\\u0000": "1"}}, "a": {tensor()}}}', 4, "NUL"),
        (f'{{"a": {tensor()}, "b": {tensor()}}}', 4, "overlaps"),
        (f'{{"a": {tensor(4, 8)}}}', 8, "gap"),
        (f'{{"a": {tensor()}}}', 8, "padded"),
        (f'{{"a": {tensor()}}}', 2, "truncated"),
        (f'{{"a": {tensor(0, 8)}}}', 8, "spans"),
        (f'{{"a": {tensor(0, 0, shape=(0,))}}}', 0, "tensors in the file are empty"),
        (f'{{"a": {tensor()}, "b": {tensor(2, 2, shape=(0,))}}}', 4, "overlaps"),
        (f'{{"a": {tensor()}, "b": {tensor(8, 8, shape=(0,))}}}', 4, "gap"),
        (f'{{"a": {tensor()}, "b": {tensor(0, 4, shape=(0,))}}}', 4, "spans"),
        (f'{{"a": {tensor(dtype="F4", end=1)}}}', 1, "F4"),
        (f'{{"a": {tensor(shape=(-1,))}}}', 4, "shape"),
        (f'{{"a": {tensor(shape=(1 << 60, 1 << 60))}}}', 4, "shape"),
        (
            '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}}',
            4,
            "exactly dtype",
        ),
        (f' {{"a": {tensor()}}}', 4, "begin"),
        ("{}", 0, "no tensor"),
        ("{", 0, "JSON"),
        ("[" * 100_000, 0, "begin"),
        ('{"a":' + "[" * 100_000, 0, "JSON"),
        (f'{{"a\\u0000b": {tensor()}}}', 4, "NUL"),
        (f'{{"a\\ud800b": {tensor()}}}', 4, "Unicode"),
        ('{"a": ' + "1" * 5000 + "}", 4, "JSON"),
        (f'{{"{"n" * 600}": {tensor()}}}', 4, "too long"),
        (json.dumps({str(i): 0 for i in range(20_001)}), 0, "20001 tensors"),
    ],
)
def test_refused_with_the_reason(header: str, data_bytes: int, reason: str) -> None:
    with pytest.raises(HeaderError, match=reason):
        parse_header(header.encode(), data_bytes)


def test_tensors_without_elements_are_markers() -> None:
    """The format allows them, and trainers use them as flags."""
    first, second, empty = tensor(), tensor(4, 8), tensor(4, 4, shape=(3, 0))
    header = parse_header(f'{{"a": {first}, "v_pred": {empty}, "b": {second}}}'.encode(), 8)
    assert set(header.tensors) == {"a", "b"}
    assert header.markers == ("v_pred",)


def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    """640, a valid length, looks like a pickle in little-endian bytes."""
    raw = f'{{"a": {tensor()}}}'.encode().ljust(640)
    path = tmp_path / "x.safetensors"
    path.write_bytes((640).to_bytes(8, "little") + raw + b"\0" * 4)
    assert set(read_header(path).tensors) == {"a"}


def test_the_error_names_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(HeaderError, match="pickle"):
        read_header(path)


@pytest.mark.parametrize("data", [b"", b"abc", (1 << 40).to_bytes(8, "little") + b"{}"])
def test_short_files_and_wrong_lengths_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(HeaderError, match="not a safetensors file"):
        read_header(path)


@given(st.binary(max_size=400), st.integers(0, 1000))
def test_random_bytes_never_crash_the_parser(raw: bytes, data_bytes: int) -> None:
    with contextlib.suppress(HeaderError):
        parse_header(raw, data_bytes)


def test_files_are_compatible_with_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(2, 2, 2).bfloat16(),
        "scalar": torch.tensor(0.5),
    }
    theirs = tmp_path / "theirs.safetensors"
    save_file(tensors, theirs, {"note": "x"})
    with TensorFile(theirs) as file:
        assert file.header.metadata == {"note": "x"}
        for name, value in tensors.items():
            assert torch.equal(file.read(name), value)
    ours = tmp_path / "ours.safetensors"
    names = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
    planned = {
        name: PlannedTensor(
            names[value.dtype], tuple(value.shape), partial(tensors.__getitem__, name)
        )
        for name, value in tensors.items()
    }
    written = write_tensors(ours, planned, {})
    assert written.size_bytes == ours.stat().st_size
    from safetensors.torch import load_file

    for name, value in load_file(ours).items():
        assert torch.equal(value, tensors[name])
