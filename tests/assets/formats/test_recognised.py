"""Identification of files: trainers' names, trigger words, relatives of SDXL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema, Shape
from assets.formats.identify import identify
from assets.formats.lora_kinds import split_key
from assets.formats.names import single_file_name, unet_ldm_name
from assets.formats.tensors import TensorFile
from assets.ingest.convert import Ingested, ingest_file
from assets.ingest.rules import check_family

Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
MLP = "text_model.encoder.layers.0.mlp.fc1"
#: Trigger words with parts of trainers' keys.
WORDS = ("oft_style", "my.lora_down.weight", "boft", "x.on_input", "hada_w1_a", "a.diff",
         "double_blocks", "lora_te2_", "clip_l")  # fmt: skip


def ingest(folder: Path, tensors: Mapping[str, torch.Tensor], schema: ParameterSchema) -> Ingested:
    path = folder / "x.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    (folder / "scratch").mkdir(exist_ok=True)
    return ingest_file(path, "lora", schema, None, folder / "scratch")


def factors(
    schema: ParameterSchema, component: str, module: str
) -> tuple[torch.Tensor, torch.Tensor]:
    out, inputs = schema.components[component][f"{module}.weight"]  # type: ignore[index]
    generator = torch.Generator().manual_seed(5)
    down = torch.randn(4, inputs, generator=generator)
    return down * 0.1, torch.randn(out, 4, generator=generator) * 0.1


@pytest.mark.parametrize(
    ("component", "module", "pattern"),
    [
        ("unet", Q, f"unet.{unet_ldm_name(Q + '.weight').removesuffix('.weight')}.lora_#.weight"),
        ("unet", Q, f"{Q}.lora_#.weight"),
        ("unet", Q, f"{Q}.lora_@.weight"),
        ("unet", Q, f"{Q}.lora_@.my-style.weight"),
        ("unet", Q, f"base_model.model.unet.{Q}.lora_@.weight"),
        ("unet", Q, f"unet.base_model.model.{Q}.lora_@.weight"),
        ("unet", Q, f"{Q.removesuffix('.to_q')}.processor.to_q_lora.#.weight"),
        ("text_encoder", MLP, f"clip_l.{MLP}.lora_#.weight"),
        ("text_encoder_2", MLP, f"clip_g.{MLP}.lora_#.weight"),
        ("text_encoder", MLP, f"base_model.model.{MLP}.lora_@.weight"),
        ("text_encoder_2", MLP, f"base_model.model.{MLP}.lora_@.weight"),
        ("text_encoder_2", MLP, f"{MLP}.lora_@.weight"),
        ("text_encoder", MLP, f"text_encoder.{MLP.removeprefix('text_model.')}.lora_@.weight"),
    ],
)
def test_trainers_names_are_matched(
    tmp_path: Path, schema: ParameterSchema, component: str, module: str, pattern: str
) -> None:
    """``#`` is down and up, ``@`` is A and B.

    Without a prefix, shapes tell text encoders apart.
    """
    down, up = factors(schema, component, module)
    tensors = {
        pattern.replace("#", "down").replace("@", "A"): down,
        pattern.replace("#", "up").replace("@", "B"): up,
    }
    done = ingest(tmp_path, tensors, schema)
    assert (done.report["matched"], done.report["modules"]) == (1, 1)
    with TensorFile(done.files["lora"][1]) as file:
        assert torch.equal(file.read(f"{component}/{module}.weight.down"), down)


@pytest.mark.parametrize("word", WORDS)
def test_trigger_words_are_never_matched_as_keys(
    tmp_path: Path, schema: ParameterSchema, word: str
) -> None:
    first, second = schema.text_widths
    down, up = factors(schema, "unet", Q)
    name = "lora_unet_" + Q.replace(".", "_")
    tensors = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"bundle_emb.{word}.clip_l": torch.randn(2, first),
        f"bundle_emb.{word}.clip_g": torch.randn(2, second),
    }
    done = ingest(tmp_path, tensors, schema)
    assert done.report["bundled"] == {word: 2}
    if word != "clip_l":
        assert identify({word: (2, 1280)}).kind == "textual_inversion"


def test_a_single_adapter_tensor_is_not_an_inversion() -> None:
    key = "lora_unet_conv_in.diff"
    assert identify({key: (32, 36)}).kind == "lora"


def test_split_key_time_does_not_grow_with_key_length() -> None:
    assert split_key("a" * 100_000 + ".alpha") == ("a" * 100_000, "alpha")
    assert split_key(".lora_A" * 20_000) is None
    assert split_key(".alpha") is None


#: (expected name, keys and shapes)
RELATIVES: dict[str, tuple[str, dict[str, Shape]]] = {
    "inpainting": (
        "an SDXL inpainting checkpoint",
        {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3),
         "model.diffusion_model.label_emb.0.0.weight": (1280, 2816)},
    ),
    "inpainting, diffusers": (
        "an SDXL inpainting checkpoint",
        {"unet/conv_in.weight": (320, 9, 3, 3), "unet/add_embedding.linear_1.weight": (1280, 2816)},
    ),
    "inpainting, SD 1.5": (
        "a Stable Diffusion inpainting checkpoint",
        {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)},
    ),
    "InstructPix2Pix": (
        "InstructPix2Pix", {"conv_in.weight": (320, 8, 3, 3),
                            "add_embedding.linear_1.weight": (1280, 2816)},
    ),
    "refiner": (
        "the SDXL refiner",
        {"conditioner.embedders.0.model.ln_final.weight": (1280,),
         "model.diffusion_model.input_blocks.0.0.weight": (384, 4, 3, 3)},
    ),
    "refiner's UNet": (
        "the SDXL refiner",
        {"conv_in.weight": (384, 4, 3, 3), "add_embedding.linear_1.weight": (1536, 2560)},
    ),
    "LCM": (
        "latent consistency",
        {"conv_in.weight": (320, 4, 3, 3), "time_embedding.cond_proj.weight": (320, 256)},
    ),
    "Kolors": (
        "Kolors", {"conv_in.weight": (320, 4, 3, 3), "unet.encoder_hid_proj.weight": (2048, 4096)},
    ),
    "ControlNet": ("a ControlNet", {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}),
    "ControlNet, original": ("a ControlNet", {"control_model.input_hint_block.0.weight": (16, 3)}),
    "T2I-Adapter": ("a T2I-Adapter", {"adapter.body.0.resnets.0.block1.weight": (320, 320, 3, 3)}),
    "IP-Adapter": (
        "an IP-Adapter",
        {"image_proj.proj.weight": (8192, 1280), "ip_adapter.1.to_k_ip.weight": (640, 2048)},
    ),
    "AnimateDiff": (
        "AnimateDiff",
        {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,)},
    ),
    "upscaler": ("an upscaler", {"model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)}),
    "CLIP": ("a CLIP text encoder alone", {"text_model.encoder.layers.0.mlp.fc1.weight": (1, 1)}),
    "CLIP vision": ("a CLIP image encoder", {"vision_model.encoder.layers.0.mlp.fc1.bias": (1,)}),
    "T5": ("a T5 text encoder", {"encoder.block.0.layer.0.SelfAttention.q.weight": (1, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", RELATIVES)
def test_unsupported_models_are_named(name: str) -> None:
    expected, listing = RELATIVES[name]
    more = {"other.weight": (1, 1)}  # a single tensor would be an inversion
    with pytest.raises(IngestRejected) as refused:
        check_family(identify({**listing, **more}))
    assert expected in str(refused.value).split("(")[0] + str(refused.value)[:90]
    assert str(refused.value).startswith("this is ")


def test_a_refiner_lora_is_named() -> None:
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    with pytest.raises(IngestRejected, match="lora for the SDXL refiner"):
        check_family(identify({key: (8, 1280), "lora_unet_x.lora_up.weight": (8, 8)}))


LAYOUTS: dict[str, Callable[[str], str]] = {
    "single file": lambda name: single_file_name("unet", name).name,
    "packed folder": lambda name: f"unet/{name}",
    "UNet alone": lambda name: name,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("thin", ["layers", "middle"])
def test_distilled_models_are_named(
    tmp_path: Path, schema: ParameterSchema, layout: str, thin: str
) -> None:
    """SDXL's widths with fewer layers, or without attention in the middle (SSD-1B)."""
    shapes = schema.components["unet"]
    deepest = max(int(n.split("transformer_blocks.")[1].split(".")[0])
                  for n in shapes if "transformer_blocks." in n)  # fmt: skip
    left_out = f"transformer_blocks.{deepest}." if thin == "layers" else "mid_block.attentions."
    if thin == "layers" and deepest == 0:
        left_out = "transformer_blocks.0."
    tensors = {
        LAYOUTS[layout](name): torch.zeros(shape, dtype=torch.float16)
        for name, shape in shapes.items() if left_out not in name
    }  # fmt: skip
    path = tmp_path / "thin.safetensors"
    save_file(tensors, path)
    with pytest.raises(IngestRejected, match="SSD-1B"):
        ingest_file(path, "checkpoint", schema, None, tmp_path)
