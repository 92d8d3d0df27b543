"""Weights come into slabs byte for byte, whichever way they take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from assets.formats.tensors import DTYPE_NAMES, Planned, TensorFile, write_tensors
from serving.engine import loading
from serving.engine.slabs import SlabLayout, load_slabs

SHAPES = {(64, 48): 9, (300, 200): 5, (7,): 3, (8, 4, 3, 3): 4}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every slab takes several, and a row may be larger than a staging buffer."""
    monkeypatch.setattr(loading, "_CHUNK_BYTES", 10_000)
    monkeypatch.setattr(loading, "_STAGING_BYTES", 30_000)
    monkeypatch.setattr(loading, "_HUGE_BYTES", 0)


def written(
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
        name: Planned(DTYPE_NAMES[dtype], tuple(t.shape), lambda t=t: t)
        for name, t in tensors.items()
    }
    path = folder / "w.safetensors"
    write_tensors(path, planned, {}, names if order == "stacked" else sorted(names))
    return path, layout, tensors


@pytest.mark.parametrize("order", ["stacked", "by name"])
@pytest.mark.parametrize("kept", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_way_gives_the_same_weights(
    tmp_path: Path, order: str, kept: torch.dtype, wanted: torch.dtype, channels_last: bool
) -> None:
    path, layout, tensors = written(tmp_path, kept, order)
    layout = SlabLayout({name: tuple(t.shape) for name, t in tensors.items()}, channels_last)
    with TensorFile(path) as file:
        slabs = load_slabs(file, layout, CPU, wanted)
        for name, tensor in tensors.items():
            place = layout.places[name]
            assert torch.equal(slabs[place.shape][place.row], tensor.to(wanted))
        spare = {shape: slab.clone().fill_(9) for shape, slab in slabs.items()}
        again = load_slabs(file, layout, CPU, wanted, spare=spare)
    for shape, slab in slabs.items():
        assert torch.equal(again[shape], slab)
        assert again[shape].data_ptr() == spare[shape].data_ptr()


@pytest.mark.parametrize("wanted", [torch.float32, torch.float16])
def test_a_file_that_ends_early_is_an_error(tmp_path: Path, wanted: torch.dtype) -> None:
    path, layout, _ = written(tmp_path, torch.float32, "stacked")
    with TensorFile(path) as file:
        with open(path, "r+b") as cut:
            cut.truncate(path.stat().st_size - 5_000)
        with pytest.raises(OSError, match="ends within"):
            load_slabs(file, layout, CPU, wanted)
