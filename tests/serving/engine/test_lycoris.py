"""LyCORIS adapters against ``lycoris-lora``, which creates them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assets.formats.lora_kinds import MAX_RANK, AdapterMismatch, adapter_of
from assets.recipe import LoraUse
from serving.engine.modules import published_names
from tests.support.namings import NAMINGS

#: name → options; every kind, with and without convolutions and Tucker cores.
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
TARGETS = [
    r".*attn2\.to_k", r".*resnets\.0\.(conv|norm)1", r".*ff\.net\.0\.proj",
    r".*self_attn\.q_proj", r".*mlp\.fc1", r".*layer_norm1",
]  # fmt: skip
#: Prefixes in kohya's and LyCORIS's names.
PREFIXES: dict[str, str] = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
}
#: Text encoders have no convolutions.
CASES = [
    (name, component)
    for component in PREFIXES
    for name in NETWORKS
    if component == "unet" or not name.endswith("tucker")
]


@pytest.fixture(scope="module")
def network() -> Iterator[type]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lycoris import LycorisNetwork
    defaults = {
        name: getattr(LycorisNetwork, name) for name in vars(LycorisNetwork) if name.isupper()
    }
    LycorisNetwork.apply_preset({"target_module": [], "target_name": TARGETS, "lora_prefix": "own"})
    yield LycorisNetwork
    for name, value in defaults.items():
        setattr(LycorisNetwork, name, value)


@pytest.fixture(scope="module")
def engine(bench: Any) -> Any:
    return bench.engine()


@pytest.fixture(scope="module")
def modules(miniature: Path) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kinds: dict[str, Any] = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    return {
        name: kind.from_pretrained(miniature / name, torch_dtype=torch.float32)
        for name, kind in kinds.items()
    }


@torch.no_grad()
def lycoris_changes(
    adapter_network: Any, shapes: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the changes of LyCORIS's forward pass, used in training.

    For LoHa and LoKr ``merge_to`` multiplies by alpha / rank twice.
    """
    changes = {}
    flat = {name.replace(".", "_"): name for name in shapes}
    for module in adapter_network.loras:
        own = module.lora_name.removeprefix("own_")
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


def trained(root: Any, name: str, seed: int) -> Any:
    from lycoris import create_lycoris

    options = {"conv_dim": 2, "conv_alpha": 1.0, **NETWORKS[name]}
    if options.get("full_matrix"):
        options |= {"conv_alpha": None}
    torch.manual_seed(seed)
    adapter_network = create_lycoris(root, 1.0, **options)
    with torch.no_grad():
        for module in adapter_network.loras:
            for parameter in module.parameters():
                parameter.normal_(0, 0.15)
    return adapter_network


def file_of(adapter_network: Any, path: Path, rename: Callable[[str], str]) -> Path:
    """Save, with modules named by ``rename`` of their underscored paths."""
    tensors = {
        f"{rename(module.lora_name.removeprefix('own_'))}.{key}": value.detach().contiguous()
        for module in adapter_network.loras
        for key, value in module.state_dict().items()
    }
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(("name", "component"), CASES)
def test_the_change_equals_lycoris(
    network: type, bench: Any, engine: Any, modules: dict[str, Any], formats: Any,
    tmp_path: Path, name: str, component: Any,
) -> None:  # fmt: skip
    """At two weights, and with two adapters."""
    root = modules[component]
    published = {v: k for k, v in published_names(component, root).items()}
    pristine = {
        published_name: root.get_parameter(own).detach().clone()
        for published_name, own in published.items()
    }
    in_memory = {own: pristine[name] for name, own in published.items()}
    text = "text_model_" if component != "unet" else ""

    def kohya(module: str) -> str:
        return PREFIXES[component] + text + module.removeprefix("text_model_")

    adapters = []
    for seed in (1, 2):
        adapter_network = trained(root, name, seed)
        path = file_of(adapter_network, tmp_path / f"{name}-{seed}.safetensors", kohya)
        adapters.append((adapter_network, bench.ingest(path, "lora")))
    assert all(asset.status == "ready" for _, asset in adapters), adapters[0][1].status_details
    report = adapters[0][1].report
    assert report["unmatched"] == []
    least = {"unet": 50, "text_encoder": 24, "text_encoder_2": 64}[component]
    assert report["matched"] == report["modules"] >= len(adapters[0][0].loras) >= least

    changes_by_module = [
        lycoris_changes(adapter_network, in_memory) for adapter_network, _ in adapters
    ]
    changes = [{n: change.get(own) for n, own in published.items()} for change in changes_by_module]
    error = 0.0
    for weights in ((1.0, 0.0), (-0.6, 0.0), (0.7, 0.5)):
        uses = tuple(
            LoraUse(asset.parts["lora"], weight)
            for (_, asset), weight in zip(adapters, weights, strict=True)
            if weight
        )
        prepared = engine.prepare(replace(engine.base, loras=uses))
        engine.switch_to(prepared)
        moved = 0
        for parameter, before in pristine.items():
            expected = before
            for weight, change in zip(weights, changes, strict=True):
                delta = change[parameter]
                if delta is not None:
                    expected = expected + weight * delta
            working = engine._working.parameter(component, parameter)
            if not torch.equal(working, before):
                moved += 1
                largest = (expected - before).abs().max()
                error = max(error, float((working - expected).abs().max() / largest))
            torch.testing.assert_close(working, expected, atol=2e-6, rtol=2e-5)
        assert moved == report["matched"]
        prepared.release()
    prepared = engine.prepare(engine.base)
    engine.switch_to(prepared)
    for parameter, before in pristine.items():
        assert torch.equal(engine._working.parameter(component, parameter), before)
    prepared.release()
    formats.measured(name, component, "lycoris-lora", error)


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_naming_gives_the_same_file(
    network: type, bench: Any, modules: dict[str, Any], formats: Any, tmp_path: Path,
    name: str, naming: str,
) -> None:  # fmt: skip
    """For each kind and covered component, the file equals that of kohya's names byte for byte.

    The test above checks the arithmetic for kohya's names.
    """
    for component, root in modules.items():
        if (name, component) not in CASES or component not in NAMINGS[naming].reaches:
            continue
        adapter_network = trained(root, name, seed=3)
        spell = NAMINGS[naming].speller(component, root)
        plain = NAMINGS["kohya"].speller(component, root)
        assets = [
            bench.ingest(
                file_of(adapter_network, tmp_path / f"{how}.safetensors", spelling), "lora"
            )
            for how, spelling in (("own", spell), ("plain", plain))
        ]
        assert [asset.status for asset in assets] == ["ready"] * 2, assets[0].status_details
        assert assets[0].report["unmatched"] == []
        assert assets[0].parts["lora"] == assets[1].parts["lora"]
        formats.named(name, component, naming)


def test_the_report_names_the_kind(network: type, bench: Any, tmp_path: Path) -> None:
    module = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = bench.manifest.schema.components["unet"]
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
    """Also a LoHa's second pair."""
    shapes: dict[str, tuple[int, ...]] = {
        "hada_w1_a": (8, 4), "hada_w1_b": (4, 8),
        "hada_w2_a": (8, MAX_RANK + 1), "hada_w2_b": (MAX_RANK + 1, 8),
    }  # fmt: skip
    with pytest.raises(AdapterMismatch, match=f"at most {MAX_RANK}"):
        adapter_of(shapes)
    assert adapter_of(shapes | {"hada_w2_a": (8, 4), "hada_w2_b": (4, 8)}).rank == 4
