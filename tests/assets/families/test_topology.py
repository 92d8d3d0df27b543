"""The parameter schema against diffusers, transformers, real files and published key maps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from assets.content import Component
from assets.errors import IngestRejected
from assets.families.schema import ParameterSchema
from assets.families.sdxl import SDXL_CONFIGS, schema_of
from assets.formats.identify import identify
from assets.formats.lora import cover
from assets.formats.names import single_file_name
from assets.ingest.rules import check_family
from serving.engine.modules import build_modules, published_names
from serving.miniature.model import MINIATURE_CONFIGS

FILES: dict[Component, str] = {
    "unet": "unet/diffusion_pytorch_model",
    "text_encoder": "text_encoder/model",
    "text_encoder_2": "text_encoder_2/model",
    "vae": "vae/diffusion_pytorch_model",
}


def listing(path: Path) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v["shape"]) for k, v in json.loads(path.read_text()).items()}


@pytest.fixture(scope="module")
def full() -> ParameterSchema:
    return schema_of(SDXL_CONFIGS)


def test_parameter_counts_of_sdxl(full: ParameterSchema) -> None:
    counts = {component: len(names) for component, names in full.components.items()}
    assert counts == {"unet": 1680, "text_encoder": 196, "text_encoder_2": 517, "vae": 248}


@pytest.mark.parametrize("configs", [SDXL_CONFIGS, MINIATURE_CONFIGS], ids=["sdxl", "miniature"])
def test_schema_matches_the_libraries(configs: Mapping[Component, Mapping[str, Any]]) -> None:
    """Also at full size, on the meta device, which needs no memory."""
    schema = schema_of(configs)
    for component, module in build_modules(configs).items():
        shapes = dict(module.named_parameters())
        built = {
            published: tuple(shapes[name].shape)
            for name, published in published_names(component, module).items()
        }
        assert built == dict(schema.components[component])


def test_schema_matches_a_real_checkpoint(full: ParameterSchema, real_data: Path) -> None:
    tree = real_data / "sdxl_tree" / "Juggernaut_XL_v9"
    for component, stem in FILES.items():
        real = listing(tree / f"{stem}.fp16.safetensors.stripped.json")
        assert real == dict(full.components[component])
        config = json.loads((tree / component / "config.json").read_text())
        of_its_config = schema_of({**SDXL_CONFIGS, component: config})
        assert real == dict(of_its_config.components[component])


def test_single_file_names_match_a_published_map(full: ParameterSchema, real_data: Path) -> None:
    document = json.loads((real_data / "keymaps" / "stable_diffusion_sdxl.json").read_text())
    theirs = {v: k for k, v in document["ldm_diffusers_keymap"].items()}
    fused = document["diffusers_ldm_operator_map"]
    prefixes: dict[Component, str] = {
        "unet": "unet_", "text_encoder": "te0_", "text_encoder_2": "te1_", "vae": "vae_",
    }  # fmt: skip
    compared = 0
    for component, prefix in prefixes.items():
        for name in full.components[component]:
            if name == "text_projection.weight":  # not in their map: special code handles it
                continue
            ours = single_file_name(component, name)
            key = prefix + name
            assert ours.name == (theirs.get(key) or fused[key]["slice"][0])
            assert (ours.third is not None) == (key in fused)
            compared += 1
    assert compared == 2640


def test_every_module_of_a_real_lora_fits_sdxl(full: ParameterSchema, real_data: Path) -> None:
    real = listing(real_data / "lora_listings" / "Alien_Style.safetensors.stripped.json")
    identity = identify(real)
    assert (identity.kind, identity.family) == ("lora", "SDXL")
    coverage = cover(real, full)
    assert len(coverage.matched) == coverage.modules == 986
    assert not coverage.unmatched
    assert not coverage.errors
    assert coverage.report()["matched_by_component"] == {
        "unet": 722,
        "text_encoder": 72,
        "text_encoder_2": 192,
    }


@pytest.mark.parametrize(
    ("name", "family"),
    [("shinkai_makoto_offset", "SD 1.5"), ("EasyNegative", "SD 1.5")],
)
def test_real_sd15_files_are_refused(real_data: Path, name: str, family: str) -> None:
    real = listing(real_data / "lora_listings" / f"{name}.safetensors.stripped.json")
    with pytest.raises(IngestRejected, match=family):
        check_family(identify(real))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("flux_lora_kohya_format", "FLUX"),
        ("flux_lora_diffusers_format", "FLUX"),
        ("flux_dora_onetrainer_format", "FLUX"),
        ("qwen_image_lora_kohya_format", "Qwen-Image"),
        ("krea2_lora_kohya_format", "Krea 2"),
        ("anima_lora_lokr_format", "Anima"),
    ],
)
def test_loras_of_other_families_are_refused(real_data: Path, name: str, family: str) -> None:
    document = json.loads((real_data / "foreign_listings" / f"{name}.json").read_text())
    real = {key: tuple(shape) for key, shape in document["state_dict_keys"].items()}
    with pytest.raises(IngestRejected, match=family):
        check_family(identify(real))
