"""Supported files that stock diffusers rejects or ignores.

A test per row of docs/formats.md's fourth table first shows that diffusers fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assets.recipe import InversionUse, LoraUse, Recipe
from tests.support.generation import image_of, task_of
from tests.support.namings import NAMINGS

WORD = "star"  # in the vocabulary


@pytest.fixture(scope="module")
def engine(bench: Any) -> Any:
    return bench.engine()


@pytest.fixture
def pipeline(miniature: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionXLPipeline.from_pretrained(miniature, local_files_only=True)
    return pipeline.to(torch.float32)


@contextmanager
def refused(message: str) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message):
            yield


def load(pipeline: Any, path: Path, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="x", **options)


def assert_changes_the_image(engine: Any, **changes: Any) -> None:
    images = []
    for recipe in (engine.base, replace(engine.base, **changes)):
        request = task_of(
            "r", recipe, f"a red {WORD}", 64, 64, (7,), steps=2, encoding="png"
        )  # fmt: skip
        images.append(image_of(engine, request))
    assert images[0] != images[1]


def lora_of(bench: Any, path: Path) -> LoraUse:
    asset = bench.ingest(path, "lora")
    assert asset.status == "ready", asset.status_details
    assert asset.report["unmatched"] == []
    return LoraUse(asset.parts["lora"], 0.7)


@pytest.fixture(scope="module")
def make(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Write LyCORIS files for the UNet, by kind and naming."""
    from diffusers import UNet2DConditionModel

    from tests.serving.engine.test_lycoris import TARGETS, file_of, trained

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lycoris import LycorisNetwork
    defaults = {
        name: getattr(LycorisNetwork, name) for name in vars(LycorisNetwork) if name.isupper()
    }
    LycorisNetwork.apply_preset({"target_module": [], "target_name": TARGETS, "lora_prefix": "own"})
    unet = UNet2DConditionModel.from_pretrained(miniature / "unet", torch_dtype=torch.float32)
    folder = tmp_path_factory.mktemp("beyond")

    def write(kind: str, naming: str) -> Path:
        path = folder / f"{kind}-{naming}.safetensors"
        return file_of(trained(unet, kind, 1), path, NAMINGS[naming].speller("unet", unet))

    yield write
    for name, value in defaults.items():
        setattr(LycorisNetwork, name, value)


@pytest.mark.parametrize(
    "kind", ["loha", "lokr", "lokr-full", "locon-tucker", "full", "norm"]
)  # fmt: skip
def test_adapters_beyond_low_rank(
    engine: Any, bench: Any, pipeline: Any, make: Any, kind: str
) -> None:
    path = make(kind, "kohya")
    with refused("not been correctly renamed"):
        load(pipeline, path)
    assert_changes_the_image(engine, loras=(lora_of(bench, path),))


def test_names_of_comfyui(engine: Any, bench: Any, pipeline: Any, make: Any) -> None:
    path = make("locon", "ComfyUI")
    with refused("Invalid LoRA checkpoint"):
        load(pipeline, path)
    assert_changes_the_image(engine, loras=(lora_of(bench, path),))


def test_dora_scales_of_kohya(engine: Any, bench: Any, pipeline: Any, make: Any) -> None:
    """diffusers ignores the DoRA scales."""
    from peft.tuners.lora import LoraLayer

    path = make("dora", "kohya")
    load(pipeline, path)
    layers = [module for module in pipeline.unet.modules() if isinstance(module, LoraLayer)]
    assert layers
    assert not any(layer.use_dora.get("x") for layer in layers)
    use = lora_of(bench, path)
    tensors = load_file(path)
    plain = {name: t for name, t in tensors.items() if not name.endswith("dora_scale")}
    save_file(plain, path.with_name("plain.safetensors"))
    without = lora_of(bench, path.with_name("plain.safetensors"))
    digests = []
    for lora_use in (use, without):
        prepared = engine.prepare(replace(engine.base, loras=(lora_use,)))
        engine.switch_to(prepared)
        digests.append(engine.digest())
        prepared.release()
    assert digests[0] != digests[1]


def test_inversions_bundled_in_a_lora(
    engine: Any, bench: Any, pipeline: Any, sample_files: dict[str, Path], tmp_path: Path
) -> None:
    vectors = load_file(sample_files["inversion"])
    bundle = {f"bundle_emb.{WORD}.{name}": tensor for name, tensor in vectors.items()}
    path = tmp_path / "bundle.safetensors"
    save_file({**load_file(sample_files["lora_cross"]), **bundle}, path)
    with refused("Invalid LoRA checkpoint"):
        load(pipeline, path)
    assert_changes_the_image(engine, loras=(lora_of(bench, path),))


def test_hot_swap_of_text_encoders(
    engine: Any, samples: dict[str, Any], pipeline: Any, sample_files: dict[str, Path]
) -> None:
    pipeline.enable_lora_hotswap(target_rank=8)
    load(pipeline, sample_files["lora_all"])
    with refused("not supported for text encoders"):
        load(pipeline, sample_files["lora_alpha"], hotswap=True)
    for name in ("lora_all", "lora_alpha"):
        assert_changes_the_image(engine, loras=(LoraUse(samples[name].parts["lora"], 1.0),))


def test_an_inversion_of_both_encoders_in_one_file(
    engine: Any, samples: dict[str, Any], pipeline: Any, sample_files: dict[str, Path]
) -> None:
    path = sample_files["inversion"]
    with refused("state dictionary is incorrect"):
        pipeline.load_textual_inversion(path.parent, weight_name=path.name, token="qzebra")
    blob = samples["inversion"].parts["textual_inversion"]
    assert_changes_the_image(engine, inversions=(InversionUse(blob, WORD),))


def test_a_trigger_word_that_is_a_word(
    engine: Any, samples: dict[str, Any], pipeline: Any, sample_files: dict[str, Path]
) -> None:
    """Even if another tenant uses the word: the vocabulary never changes."""
    vectors = load_file(sample_files["inversion"])["clip_l"]
    with refused("already in tokenizer vocabulary"):
        pipeline.load_textual_inversion(
            vectors, WORD, tokenizer=pipeline.tokenizer, text_encoder=pipeline.text_encoder
        )
    images = set()
    for name in ("inversion", "inversion_long"):
        use = InversionUse(samples[name].parts["textual_inversion"], WORD)
        recipe: Recipe = replace(engine.base, inversions=(use,))
        request = task_of("r", recipe, f"a {WORD}", 64, 64, (7,), steps=1, encoding="png")
        images.add(image_of(engine, request))
    assert len(images) == 2
