"""Adapters of the LyCORIS family, made by ``lycoris-lora`` itself, which is also the oracle."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assets.formats.lora_kinds import MAX_RANK, Unfit, adapter_of
from assets.recipe import LoraUse

#: name → options of the network; every kind with and without convolutions and Tucker cores.
NETWORKS: dict[str, dict[str, Any]] = {
    "locon": {"algo": "locon", "linear_dim": 4, "linear_alpha": 2.0},
    "locon-tucker": {"algo": "locon", "linear_dim": 4, "linear_alpha": 2.0, "use_tucker": True},
    "loha": {"algo": "loha", "linear_dim": 3, "linear_alpha": 1.5},
    "loha-tucker": {"algo": "loha", "linear_dim": 3, "linear_alpha": 1.5, "use_tucker": True},
    "lokr": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 1.0},
    "lokr-both": {"algo": "lokr", "linear_dim": 1, "linear_alpha": 3.0, "decompose_both": True},
    "lokr-full": {"algo": "lokr", "linear_dim": 4, "full_matrix": True, "factor": 4},
    "lokr-tucker": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 1.0, "use_tucker": True},
    "dora": {"algo": "locon", "linear_dim": 4, "linear_alpha": 2.0, "dora_wd": True},
    "dora-in": {"algo": "locon", "linear_dim": 4, "dora_wd": True, "wd_on_out": False},
    "doha": {"algo": "loha", "linear_dim": 3, "linear_alpha": 1.5, "dora_wd": True},
    "dokr": {"algo": "lokr", "linear_dim": 2, "linear_alpha": 1.0, "dora_wd": True},
    "full": {"algo": "full"},
    "norm": {"algo": "locon", "linear_dim": 4, "train_norm": True},
}
TARGETS = [r".*attn2\.to_k", r".*resnets\.0\.(conv|norm)1", r".*ff\.net\.0\.proj"]


@pytest.fixture(scope="module")
def network() -> Iterator[type]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lycoris import LycorisNetwork
    kept = {name: getattr(LycorisNetwork, name) for name in vars(LycorisNetwork) if name.isupper()}
    LycorisNetwork.apply_preset(
        {"target_module": [], "target_name": TARGETS, "lora_prefix": "lora_unet"}
    )
    yield LycorisNetwork
    for name, value in kept.items():
        setattr(LycorisNetwork, name, value)


@torch.no_grad()
def learned(made: Any, shapes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each parameter's change as LyCORIS's own forward pass adds it.

    Not ``merge_to``: for LoHa and LoKr that multiplies by alpha / rank twice, which the
    forward pass, with which adapters are trained, does once.
    """
    changes = {}
    flat = {name.replace(".", "_"): name for name in shapes}
    for module in made.loras:
        own = module.lora_name.removeprefix("lora_unet_")
        state = module.state_dict()
        differences = {"weight": ("diff", "w_norm"), "bias": ("diff_b", "b_norm")}
        for leaf, keys in differences.items():
            for key in keys:
                if key in state:
                    changes[flat[f"{own}_{leaf}"]] = state[key].clone()
        if f"{own}_weight" not in flat or flat[f"{own}_weight"] in changes:
            continue
        name = flat[f"{own}_weight"]
        shape = shapes[name].shape
        if type(module).__name__ == "LoConModule":
            change = module.get_diff_weight(1.0, shape)[0]
        else:
            change = module.get_weight(shape)
        change = change.detach().reshape(shape)
        if module.wd:
            change = module.apply_weight_decompose(shapes[name] + change, 1) - shapes[name]
        changes[name] = change
    return changes


@pytest.mark.parametrize("name", NETWORKS)
def test_the_change_is_lycoris_own(
    network: type, bench: Any, miniature: Path, tmp_path: Path, name: str
) -> None:
    """``working`` equals what LyCORIS learned, at two weights and with two adapters at once."""
    from diffusers import UNet2DConditionModel
    from lycoris import create_lycoris

    unet = UNet2DConditionModel.from_pretrained(miniature / "unet", torch_dtype=torch.float32)
    pristine = {n: p.detach().clone() for n, p in unet.named_parameters()}
    options = {"conv_dim": 2, "conv_alpha": 1.0, **NETWORKS[name]}
    if options.get("full_matrix"):
        options |= {"conv_alpha": None}
    adapters = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made = create_lycoris(unet, 1.0, **options)
        tensors = {}
        for module in made.loras:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.normal_(0, 0.15)
            for key, value in module.state_dict().items():
                tensors[f"{module.lora_name}.{key}"] = value.detach().contiguous()
        path = tmp_path / f"{name}-{seed}.safetensors"
        save_file(tensors, path)
        adapters.append((made, bench.ingest(path, "lora")))
    assert all(asset.status == "ready" for _, asset in adapters), adapters[0][1].status_details
    report = adapters[0][1].report
    assert report["unmatched"] == []
    assert report["matched"] == report["modules"] >= len(adapters[0][0].loras) > 50

    changes = [learned(made, pristine) for made, _ in adapters]
    engine = bench.engine()
    for weights in ((1.0, 0.0), (-0.6, 0.0), (0.7, 0.5)):
        uses = tuple(
            LoraUse(asset.parts["lora"], weight)
            for (_, asset), weight in zip(adapters, weights, strict=True)
            if weight
        )
        prepared = engine.prepare(replace(engine.base, loras=uses))
        engine.become(prepared)
        moved = 0
        for parameter, before in pristine.items():
            wanted = before
            for weight, change in zip(weights, changes, strict=True):
                wanted = wanted + weight * change.get(parameter, torch.zeros(()))
            working = engine._unet.get_parameter(parameter)
            moved += not torch.equal(working, before)
            torch.testing.assert_close(working, wanted, atol=2e-6, rtol=2e-5)
        assert moved == report["matched"]
        prepared.release()
    prepared = engine.prepare(engine.base)
    engine.become(prepared)
    assert all(torch.equal(engine._unet.get_parameter(n), value) for n, value in pristine.items())
    prepared.release()


def test_the_kinds_are_told_apart(network: type, bench: Any, tmp_path: Path) -> None:
    """The report names the kind; two spellings of LyCORIS's names mean the same module."""
    module = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = bench.manifest.skeleton.components["unet"]
    out, inputs = shapes["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
    for prefix in ("lora_unet_", "lycoris_"):
        tensors = {
            f"{prefix}{module}.lokr_w1": torch.randn(2, 2),
            f"{prefix}{module}.lokr_w2": torch.randn(out // 2, inputs // 2),
            f"{prefix}{module}.alpha": torch.tensor(9.0),
        }
        path = tmp_path / f"{prefix}.safetensors"
        save_file(tensors, path)
        report = bench.ingest(path, "lora").report
        assert (report["kinds"], report["ranks"], report["matched"]) == (["LoKr"], [], 1)
    half = load_file(path)
    del half[f"lycoris_{module}.lokr_w1"]
    save_file(half, tmp_path / "half.safetensors")
    asset = bench.ingest(tmp_path / "half.safetensors", "lora")
    assert asset.status == "rejected"
    assert "no lokr_w1_a factor" in asset.status_details


def test_every_pair_of_factors_has_a_bounded_rank() -> None:
    """The second pair of a LoHa as well as the first."""
    shapes: dict[str, tuple[int, ...]] = {
        "hada_w1_a": (8, 4), "hada_w1_b": (4, 8),
        "hada_w2_a": (8, MAX_RANK + 1), "hada_w2_b": (MAX_RANK + 1, 8),
    }  # fmt: skip
    with pytest.raises(Unfit, match=f"at most {MAX_RANK}"):
        adapter_of(shapes)
    assert adapter_of(shapes | {"hada_w2_a": (8, 4), "hada_w2_b": (4, 8)}).rank == 4
