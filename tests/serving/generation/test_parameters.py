"""Parameters in image files: A1111's rules read them back."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from assets.errors import InvalidAsset
from serving.generation.contract import AssetMark, GenerationParams, ImageEncoding, Provenance
from serving.generation.image_metadata import text_of, with_text
from serving.generation.parameters import parameters_text, read_parameters
from serving.generation.samplers import SAMPLERS
from serving.generation.styles import Style

PROVENANCE = Provenance(
    model=AssetMark("night,sky", "a1" * 32),
    vae=AssetMark("acme:soft", ""),
    loras=(AssetMark("acme:outline", "b2" * 32, 0.8), AssetMark("dots", "", 1)),
    inversions=(AssetMark("lagoon", "c3" * 32),),
)
PLAIN = Provenance(model=AssetMark("base"))


def a1111_pairs(text: str) -> tuple[str, str, dict[str, str]]:
    """A1111's own rules, written down a second time."""
    pattern = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    *lines, last = text.strip().split("\n")
    if len(pattern.findall(last)) < 3:
        lines.append(last)
        last = ""
    prompt, negative, is_negative = "", "", False
    for line in lines:
        line = line.strip()
        if line.startswith("Negative prompt:"):
            is_negative, line = True, line[16:].strip()
        if is_negative:
            negative += ("" if not negative else "\n") + line
        else:
            prompt += ("" if not prompt else "\n") + line
    pairs = {}
    for name, value in pattern.findall(last):
        if value.startswith('"') and value.endswith('"'):
            value = json.loads(value)
        pairs[name] = value
    return prompt, negative, pairs


def test_a1111_reads_what_is_written() -> None:
    params = GenerationParams(
        prompt="a (red:1.2) star", negative_prompt="blurred", clip_skip=2, steps=25, cfg_scale=7,
        sampler="DPM_PLUS_PLUS_2M_KARRAS", styles=(Style("big", "a big {prompt}", "small", 3),),
    )  # fmt: skip
    text = parameters_text(params, PROVENANCE, 2**64 - 1, 832, 1216)
    assert text.split("\n") == [
        "a big a (red:1.2) star <lora:acme:outline:0.8> <lora:dots:1>",
        "Negative prompt: small, blurred",
        "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, "
        'Seed: 18446744073709551615, Size: 832x1216, Model hash: a1a1a1a1a1, Model: "night,sky", '
        'VAE: "acme:soft", Clip skip: 2, Styles: big v3, '
        'Lora hashes: "acme:outline: b2b2b2b2b2", TI hashes: "lagoon: c3c3c3c3c3", '
        "Version: Asset Orchestrator",
    ]
    prompt, negative, pairs = a1111_pairs(text)
    assert prompt == "a big a (red:1.2) star <lora:acme:outline:0.8> <lora:dots:1>"
    assert negative == "small, blurred"
    assert pairs["Model"] == "night,sky"
    assert pairs["Lora hashes"] == "acme:outline: b2b2b2b2b2"
    found = read_parameters(text)
    assert (found.prompt, found.negative_prompt) == (prompt, negative)
    assert {**found.settings} == {**pairs, "Size-1": "832", "Size-2": "1216"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_has_a_name(sampler: Any) -> None:
    text = parameters_text(GenerationParams(prompt="a", sampler=sampler), PLAIN, 1, 64, 64)
    settings = read_parameters(text).settings
    assert settings["Sampler"]
    assert settings["Schedule type"]


LINES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60)


@given(LINES, st.none() | LINES, st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_prompt_and_name_is_read_back(prompt: str, negative: str | None, model: str) -> None:
    if any(text.strip().startswith("Negative prompt:") for text in (prompt, negative or "")):
        return
    params = GenerationParams(prompt=prompt, negative_prompt=negative)
    text = parameters_text(params, Provenance(model=AssetMark(model or "m")), 1, 64, 64)
    found = read_parameters(text)
    assert found.prompt == prompt.strip()
    assert found.negative_prompt == (negative or "").strip()
    assert found.settings["Steps"] == "30"
    assert found.settings["Model"].strip() == (model or "m").strip()


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    read_parameters(text)


IMAGE = Image.fromarray(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("encoding", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("text", ["Steps: 1", "a \u00e9t\u00e9", "星 ☆ 🎨", "x" * 16_000])
def test_text_survives_in_every_encoding(encoding: ImageEncoding, text: str) -> None:
    buffer = io.BytesIO()
    IMAGE.save(buffer, encoding.upper(), **with_text(encoding, text))
    assert text_of(buffer.getvalue()) == text
    plain = io.BytesIO()
    IMAGE.save(plain, encoding.upper(), **with_text(encoding, None))
    assert text_of(plain.getvalue()) is None


def test_a_text_too_long_for_exif_keeps_its_settings() -> None:
    params = GenerationParams(prompt="🎨" * 10_000, negative_prompt="🎨" * 10_000)
    text = parameters_text(params, PROVENANCE, 1, 64, 64)
    buffer = io.BytesIO()
    IMAGE.save(buffer, "JPEG", **with_text("jpeg", text))
    found = text_of(buffer.getvalue())
    assert found is not None
    assert read_parameters(found).settings == read_parameters(text).settings
    buffer = io.BytesIO()
    IMAGE.save(buffer, "PNG", **with_text("png", text))
    assert text_of(buffer.getvalue()) == text


def test_the_exif_comment_is_as_a1111_writes_it() -> None:
    buffer = io.BytesIO()
    IMAGE.save(buffer, "JPEG", **with_text("jpeg", "Steps: 1"))
    comment = Image.open(buffer).getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + "Steps: 1".encode("utf-16-be")


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidAsset):
        text_of(data)
