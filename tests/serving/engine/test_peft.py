"""LoRA and DoRA trained by peft, saved by diffusers; reference: peft's merge."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assets.recipe import InversionUse, LoraUse
from tests.support.generation import task_of

TARGETS = r".*(attn2\.to_k|attn2\.to_out\.0|resnets\.0\.conv1|ff\.net\.2)"
PATTERNS = {
    "rank_pattern": {"attn2.to_k": 2},
    "alpha_pattern": {"attn2.to_k": 6, "resnets.0.conv1": 1.5},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "patterns": {"r": 4, "lora_alpha": 2, **PATTERNS},
    "dora-peft": {"r": 4, "lora_alpha": 2, "use_dora": True},
    "rslora": {"r": 16, "lora_alpha": 16, "use_rslora": True},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_change_equals_peft(
    bench: Any, miniature: Path, formats: Any, tmp_path: Path, name: str
) -> None:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from peft import LoraConfig, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    unet = UNet2DConditionModel.from_pretrained(miniature / "unet", torch_dtype=torch.float32)
    config = LoraConfig(target_modules=TARGETS, **CONFIGS[name])
    torch.manual_seed(1)
    unet.add_adapter(config)
    with torch.no_grad():
        for parameter in (p for p in unet.parameters() if p.requires_grad):
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = get_peft_model_state_dict(unet)
        StableDiffusionXLPipeline.save_lora_weights(
            tmp_path,
            unet_lora_layers=layers,
            weight_name="x.safetensors",
            unet_lora_adapter_metadata=config.to_dict() | {"target_modules": []},
        )
    asset = bench.ingest(tmp_path / "x.safetensors", "lora")
    assert asset.status == "ready", asset.status_details

    modules = {n: m for n, m in unet.named_modules() if isinstance(m, LoraLayer)}
    assert len(modules) == asset.report["matched"] == asset.report["modules"]
    engine = bench.engine()
    prepared = engine.prepare(replace(engine.base, loras=(LoraUse(asset.parts["lora"], 1.0),)))
    engine.switch_to(prepared)
    error = 0.0
    for module_name, module in modules.items():
        before = module.get_base_layer().weight.clone()
        module.merge()
        working, expected = (
            engine._unet.get_submodule(module_name).weight,
            module.get_base_layer().weight,
        )
        error = max(
            error, float((working - expected).abs().max() / (expected - before).abs().max())
        )
        torch.testing.assert_close(working, expected, atol=3e-6, rtol=3e-5)
    prepared.release()
    formats.measured(name, "unet", "peft", error)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_peft_folder_gives_the_same_file(
    bench: Any, miniature: Path, tmp_path: Path, name: str
) -> None:
    """``adapter_config.json`` beside the file equals diffusers' metadata in it."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    unet = UNet2DConditionModel.from_pretrained(miniature / "unet", torch_dtype=torch.float32)
    config = LoraConfig(target_modules=TARGETS, init_lora_weights=False, **CONFIGS[name])
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(unet, config)
        model.save_pretrained(tmp_path)
        layers = {
            key.removeprefix("base_model.model."): value
            for key, value in get_peft_model_state_dict(model).items()
        }
        StableDiffusionXLPipeline.save_lora_weights(
            tmp_path,
            unet_lora_layers=layers,
            weight_name="diffusers.safetensors",
            unet_lora_adapter_metadata=config.to_dict() | {"target_modules": []},
        )
    adapter_config = json.loads((tmp_path / "adapter_config.json").read_text())
    own = bench.ingest(
        tmp_path / "adapter_model.safetensors", "lora", adapter_config=adapter_config
    )
    other = bench.ingest(tmp_path / "diffusers.safetensors", "lora")
    assert own.parts["lora"] == other.parts["lora"], own.status_details
    assert own.report["alpha"] == other.report["alpha"] == "configuration"
    without_config = bench.ingest(tmp_path / "adapter_model.safetensors", "lora")
    assert without_config.report["alpha"] == "rank"
    assert without_config.parts["lora"] != own.parts["lora"]


def test_an_inversion_bundled_with_a_lora(
    bench: Any, sample_files: dict[str, Path], samples: dict[str, Any], tmp_path: Path
) -> None:
    """The bundled one equals a separate one; a requested one takes precedence."""
    vectors = load_file(sample_files["inversion"])
    lora = load_file(sample_files["lora_cross"])
    bundle = {f"bundle_emb.qzebra.{name}": tensor for name, tensor in vectors.items()}
    save_file({**lora, **bundle}, tmp_path / "bundle.safetensors")
    asset = bench.ingest(tmp_path / "bundle.safetensors", "lora")
    assert asset.status == "ready", asset.status_details
    assert asset.report["bundled"] == {"qzebra": 2}

    engine = bench.engine()
    plain = LoraUse(samples["lora_cross"].parts["lora"], 1.0)
    bundled = LoraUse(asset.parts["lora"], 1.0)
    own = InversionUse(samples["inversion"].parts["textual_inversion"], "qzebra")
    other = InversionUse(samples["inversion_long"].parts["textual_inversion"], "qzebra")

    def context(**changes: Any) -> torch.Tensor:

        recipe = replace(engine.base, **changes)
        prepared = engine.prepare(recipe)
        engine.switch_to(prepared)
        request = task_of("r", recipe, "a qzebra star", 128, 128, (7,))
        positive, _, prompt_warnings = engine.prompts.encode(prepared, request)
        prepared.release()
        assert prompt_warnings == []
        return torch.as_tensor(positive.context)

    with_bundle = context(loras=(bundled,))
    assert torch.equal(with_bundle, context(loras=(plain,), inversions=(own,)))
    assert not torch.equal(with_bundle, context(loras=(plain,)))
    assert torch.equal(
        context(loras=(bundled,), inversions=(other,)), context(loras=(plain,), inversions=(other,))
    )

    half = {"bundle_emb.qzebra.clip_l": vectors["clip_l"]}
    save_file({**lora, **half}, tmp_path / "half.safetensors")
    rejected = bench.ingest(tmp_path / "half.safetensors", "lora")
    assert "no vectors for text_encoder_2" in rejected.status_details
