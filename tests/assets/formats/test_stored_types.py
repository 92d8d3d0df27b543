"""Stored dtypes: 8-bit, scaled and 64-bit weights; integers are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from assets.content import MODEL_COMPONENTS
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema
from assets.formats.names import single_file_name
from assets.formats.tensors import TORCH_DTYPES, TensorFile
from assets.ingest.convert import ingest_file
from serving.miniature.model import weights

Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
EIGHT_BITS = ("F8_E4M3", "F8_E5M2")


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_float16_represents_every_8_bit_value(dtype: str) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(TORCH_DTYPES[dtype]).float()
    halves = every.half().float()
    assert torch.equal(every.nan_to_num(7.0), halves.nan_to_num(7.0))


@pytest.mark.parametrize(("dtype", "stored"), [*((d, "F16") for d in EIGHT_BITS), ("F64", "F32")])
def test_a_lora_is_stored_in_the_canonical_dtype(
    tmp_path: Path, schema: ParameterSchema, dtype: str, stored: str
) -> None:
    out, inputs = schema.components["unet"][f"{Q}.weight"]
    name = "lora_unet_" + Q.replace(".", "_")
    tensors = {
        f"{name}.lora_down.weight": torch.randn(4, inputs).to(TORCH_DTYPES[dtype]),
        f"{name}.lora_up.weight": torch.randn(out, 4).to(TORCH_DTYPES[dtype]),
        f"{name}.alpha": torch.tensor(2.0).to(TORCH_DTYPES[dtype]),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    done = ingest_file(tmp_path / "x.safetensors", "lora", schema, None, tmp_path)
    with TensorFile(done.files["lora"][1]) as file:
        down = file.read(f"unet/{Q}.weight.down")
        assert file.header.tensors[f"unet/{Q}.weight.down"].dtype == stored
        assert torch.equal(down, tensors[f"{name}.lora_down.weight"].to(TORCH_DTYPES[stored]))
        assert file.read("scales").tolist() == [0.5]
    assert dtype in done.report["dtypes"]


def test_integer_weights_are_refused(tmp_path: Path, schema: ParameterSchema) -> None:
    out, inputs = schema.components["unet"][f"{Q}.weight"]
    name = "lora_unet_" + Q.replace(".", "_")
    tensors = {
        f"{name}.lora_down.weight": torch.ones(4, inputs, dtype=torch.int8),
        f"{name}.lora_up.weight": torch.ones(out, 4),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(IngestRejected, match="is I8; accepted: F64, F32, F16"):
        ingest_file(tmp_path / "x.safetensors", "lora", schema, None, tmp_path)


def checkpoint(
    schema: ParameterSchema, dtype: torch.dtype, scale: float
) -> dict[str, torch.Tensor]:
    """Single-file names; linear weights divided by ``scale``."""
    tensors = {}
    for name, value in weights("unet").items():
        source = single_file_name("unet", name).name
        if value.ndim == 2:
            tensors[source] = (value.float() / scale).to(dtype)
            tensors[source.removesuffix("weight") + "scale_weight"] = torch.tensor(scale)
        else:
            tensors[source] = value
    return tensors


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_scaled_weights_are_multiplied_by_their_scale(
    tmp_path: Path, schema: ParameterSchema, dtype: str
) -> None:
    tensors = checkpoint(schema, TORCH_DTYPES[dtype], 0.25)
    tensors["scaled_fp8"] = torch.zeros(0).to(TORCH_DTYPES[dtype])
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    done = ingest_file(path, "checkpoint", schema, None, tmp_path)
    assert done.report["unmatched"] == []
    assert done.report["markers"] == ["scaled_fp8"]
    name = f"{Q}.weight"
    with TensorFile(done.files["unet"][1]) as file:
        expected = tensors[single_file_name("unet", name).name].float() * 0.25
        assert torch.equal(file.read(name), expected.half())


def test_a_scale_that_is_not_scalar_is_refused(tmp_path: Path, schema: ParameterSchema) -> None:
    tensors = checkpoint(schema, torch.float8_e4m3fn, 0.25)
    source = single_file_name("unet", f"{Q}.weight").name.removesuffix("weight") + "scale_weight"
    tensors[source] = torch.ones(7)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(IngestRejected, match="not a single floating-point number"):
        ingest_file(tmp_path / "x.safetensors", "checkpoint", schema, None, tmp_path)


def test_a_float64_checkpoint_is_stored_as_float32(tmp_path: Path, schema: ParameterSchema) -> None:
    keys = {}
    for dtype in (torch.float64, torch.float32):
        tensors = {
            single_file_name("unet", name).name: value.to(dtype)
            for name, value in weights("unet").items()
        }
        save_file(tensors, tmp_path / "x.safetensors")
        done = ingest_file(tmp_path / "x.safetensors", "checkpoint", schema, None, tmp_path)
        keys[dtype] = done.files["unet"][0].key
        assert done.report["from_base"] == [c for c in MODEL_COMPONENTS if c != "unet"]
    assert keys[torch.float64] == keys[torch.float32]
