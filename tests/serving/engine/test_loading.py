"""Loading fills slabs byte for byte on every path."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from assets.formats.tensors import DTYPE_NAMES, PlannedTensor, TensorFile, write_tensors
from serving.engine import loading
from serving.engine.slabs import SlabLayout, load_slabs

SHAPES = {(64, 48): 9, (300, 200): 5, (7,): 3, (8, 4, 3, 3): 4}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces per slab; some rows exceed a staging buffer."""
    monkeypatch.setattr(loading, "_CHUNK_BYTES", 10_000)
    monkeypatch.setattr(loading, "_STAGING_BYTES", 30_000)
    monkeypatch.setattr(loading, "_HUGE_BYTES", 0)


def write_file(
    folder: Path, dtype: torch.dtype, order: str
) -> tuple[Path, SlabLayout, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"p{number}.{'x'.join(map(str, shape))}": torch.randn(shape, generator=generator).to(dtype)
        for shape, count in SHAPES.items()
        for number in range(count)
    }
    layout = SlabLayout({name: tuple(t.shape) for name, t in tensors.items()})
    names = [name for group in layout.rows.values() for name in group]
    planned = {
        name: PlannedTensor(DTYPE_NAMES[dtype], tuple(t.shape), partial(tensors.__getitem__, name))
        for name, t in tensors.items()
    }
    path = folder / "w.safetensors"
    write_tensors(path, planned, {}, names if order == "stacked" else sorted(names))
    return path, layout, tensors


@pytest.mark.parametrize("order", ["stacked", "by name"])
@pytest.mark.parametrize("file_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("slab_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_path_loads_the_same_weights(
    tmp_path: Path,
    order: str,
    file_dtype: torch.dtype,
    slab_dtype: torch.dtype,
    channels_last: bool,
) -> None:
    path, layout, tensors = write_file(tmp_path, file_dtype, order)
    layout = SlabLayout({name: tuple(t.shape) for name, t in tensors.items()}, channels_last)
    with TensorFile(path) as file:
        slabs = load_slabs(file, layout, CPU, slab_dtype)
        for name, tensor in tensors.items():
            place = layout.places[name]
            assert torch.equal(slabs[place.shape][place.row], tensor.to(slab_dtype))
        spare = {shape: slab.clone().fill_(9) for shape, slab in slabs.items()}
        again = load_slabs(file, layout, CPU, slab_dtype, spare=spare)
    for shape, slab in slabs.items():
        assert torch.equal(again[shape], slab)
        assert again[shape].data_ptr() == spare[shape].data_ptr()


@pytest.mark.parametrize("slab_dtype", [torch.float32, torch.float16])
def test_a_file_that_ends_early_is_an_error(tmp_path: Path, slab_dtype: torch.dtype) -> None:
    path, layout, _ = write_file(tmp_path, torch.float32, "stacked")
    with TensorFile(path) as file:
        with open(path, "r+b") as truncated:
            truncated.truncate(path.stat().st_size - 5_000)
        with pytest.raises(OSError, match="ends within"):
            load_slabs(file, layout, CPU, slab_dtype)
