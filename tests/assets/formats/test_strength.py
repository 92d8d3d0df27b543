"""LoRA scales of PEFT configurations: applied, refused or warned about."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema
from assets.formats.lora_scales import read_scales
from assets.formats.tensors import TensorFile
from assets.ingest.convert import Ingested, OwnerDeclaration, ingest_file

Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
K = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
RANK = 16


def ingest(
    folder: Path,
    schema: ParameterSchema,
    config: Mapping[str, Any] | None,
    *,
    inside: bool,
    more: Mapping[str, torch.Tensor] | None = None,
) -> Ingested:
    tensors = dict(more or {})
    for module in (Q, K):
        out, inputs = schema.components["unet"][f"{module}.weight"]
        tensors[f"unet.{module}.lora_A.weight"] = torch.randn(RANK, inputs) * 0.1
        tensors[f"unet.{module}.lora_B.weight"] = torch.randn(out, RANK) * 0.1
    metadata = {}
    if inside and config is not None:
        named = {f"unet.{name}": value for name, value in config.items()}
        metadata["lora_adapter_metadata"] = json.dumps(named)
    save_file(tensors, folder / "lora.safetensors", metadata)
    word = OwnerDeclaration(adapter_config=None if inside else config)
    (folder / "scratch").mkdir(exist_ok=True)
    return ingest_file(folder / "lora.safetensors", "lora", schema, None, folder / "scratch", word)


def scales(done: Ingested) -> list[float]:
    with TensorFile(done.files["lora"][1]) as file:
        values: list[float] = file.read("scales").tolist()
    return values


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"lora_alpha": 8}, [0.5, 0.5]),
        ({"lora_alpha": 16, "use_rslora": True}, [4.0, 4.0]),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": 32}}, [0.5, 2.0]),
        ({"lora_alpha": 8, "alpha_pattern": {"attn1.to_k": 4}, "use_rslora": True}, [1.0, 2.0]),
        ({"alpha_pattern": {r"attn1\.to_k": 4}, "lora_alpha": 16}, [0.25, 1.0]),
        ({"r": RANK}, [1.0, 1.0]),
        ({"peft_type": "LOHA", "alpha": 4}, [0.25, 0.25]),
    ],
)
def test_supported_fields_are_applied(
    tmp_path: Path,
    schema: ParameterSchema,
    config: Mapping[str, Any],
    expected: list[float],
    inside: bool,
) -> None:
    done = ingest(tmp_path, schema, config, inside=inside)
    assert scales(done) == pytest.approx(expected)
    assert done.report["alpha"] == "configuration"
    assert "warnings" not in done.report


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"peft_type": "VERA"}, "VERA"),
        ({"use_dora": True, "lora_alpha": 8}, "DoRA"),
        ({"lora_alpha": "8"}, "not a number"),
        ({"lora_alpha": True}, "not a number"),
        ({"lora_alpha": 10**400}, "too large"),
        ({"use_rslora": "false"}, "neither true nor false"),
        ({"alpha_pattern": [1]}, "not an object"),
        ({"alpha_pattern": {"to_(q|k)": 4}}, "regular expression"),
        ({"rank_pattern": {".*attn": 4}}, "regular expression"),
    ],
)
def test_unsupported_fields_are_refused_by_name(
    tmp_path: Path, schema: ParameterSchema, config: Mapping[str, Any], reason: str, inside: bool
) -> None:
    with pytest.raises(IngestRejected, match=reason):
        ingest(tmp_path, schema, config, inside=inside)


def test_unknown_fields_are_warnings(tmp_path: Path, schema: ParameterSchema) -> None:
    config = {"lora_alpha": 8, "use_tomorrow": True, "use_yesterday": False, "layers": None}
    done = ingest(tmp_path, schema, config, inside=False)
    (warning,) = done.report["warnings"]
    assert "adapter_config.json has the unknown field 'use_tomorrow'" in warning


def test_an_alpha_tensor_takes_precedence(tmp_path: Path, schema: ParameterSchema) -> None:
    more = {f"unet.{Q}.alpha": torch.tensor(4.0)}
    done = ingest(tmp_path, schema, {"lora_alpha": 8}, inside=True, more=more)
    assert scales(done) == pytest.approx([0.5, 0.25])
    assert done.report["alpha"] == "configuration, tensors"
    done = ingest(tmp_path, schema, None, inside=True)
    assert scales(done) == [1.0, 1.0]
    assert done.report["alpha"] == "rank"


def test_sections_apply_to_their_components() -> None:
    config = {"unet.lora_alpha": 4, "text_encoder.lora_alpha": 8, "text_encoder.use_rslora": True}
    strengths = read_scales({"lora_adapter_metadata": json.dumps(config)}, {"lora_alpha": 2})
    assert strengths.scale("unet", Q, 16) == 0.25
    assert strengths.scale("text_encoder", "x", 16) == 8 / math.sqrt(16)
    # adapter_config.json covers the other components
    assert strengths.scale("text_encoder_2", "x", 16) == 0.125


def test_two_adapters_in_one_file_are_refused(tmp_path: Path, schema: ParameterSchema) -> None:
    out, inputs = schema.components["unet"][f"{Q}.weight"]
    more = {
        f"unet.{Q}.lora_A.other.weight": torch.randn(RANK, inputs),
        f"unet.{Q}.lora_B.other.weight": torch.randn(out, RANK),
    }
    with pytest.raises(IngestRejected, match="two adapters for one module"):
        ingest(tmp_path, schema, None, inside=True, more=more)
