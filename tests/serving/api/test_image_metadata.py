"""Parameters within generated images, and how to leave them out."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.support.platforms import Running, put_asset

PROMPT = {"prompt": "a small red star", "seed": 3, "steps": 2, "image_encoding": "png"}


@pytest.fixture(scope="module")
def http(platform: Running) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {platform.key('metadata')}"}
    with httpx2.Client(base_url=platform.url, headers=headers, timeout=60) as client:
        yield client


def generate(http: httpx2.Client, **changes: Any) -> bytes:
    answer = http.post("/generate/sdxl", json={**PROMPT, **changes})
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["images"][0]["image_b64"])


def parameters_of(http: httpx2.Client, image: bytes) -> dict[str, Any]:
    headers = {"Content-Type": "application/octet-stream"}
    answer = http.post("/v1/images/parameters", content=image, headers=headers)
    return dict(answer.raise_for_status().json())


@pytest.mark.parametrize("encoding", ["png", "jpeg", "webp"])
def test_an_image_tells_how_it_was_made(
    http: httpx2.Client, sample_files: dict[str, Path], encoding: str
) -> None:
    name = f"outline-{encoding}"
    put_asset(http, sample_files["lora_all"], "lora", name)
    image = generate(http, image_encoding=encoding, loras={name: 0.5}, negative_prompt="dull")
    found = parameters_of(http, image)
    assert found["prompt"] == f"a small red star <lora:{name}:0.5>"
    assert found["negative_prompt"] == "dull"
    settings = found["settings"]
    digest = hashlib.sha256(sample_files["lora_all"].read_bytes()).hexdigest()
    assert settings["Lora hashes"] == f"{name}: {digest[:10]}"
    assert (settings["Steps"], settings["Seed"], settings["Sampler"]) == ("2", "3", "DDIM")
    # The prompt as it was read back makes the same image.
    again = {"loras": {}, "prompt": found["prompt"], "negative_prompt": "dull"}
    first = generate(http, loras={name: 0.5}, negative_prompt="dull", metadata=False)
    assert generate(http, **again, metadata=False) == first


def test_it_can_be_left_out(http: httpx2.Client, platform: Running) -> None:
    assert parameters_of(http, generate(http, metadata=False))["text"] is None
    assert http.get("/v1/organisation").json()["image_metadata"] is True
    changed = http.patch("/v1/organisation", json={"image_metadata": False}).raise_for_status()
    assert changed.json() == {"image_metadata": False}
    try:
        assert http.get("/v1/organisation").json()["image_metadata"] is False
        assert parameters_of(http, generate(http))["text"] is None
        assert parameters_of(http, generate(http, metadata=True))["text"] is not None
        acts = [entry["act"] for entry in http.get("/v1/audit").json()["data"]]
        assert "tenant.image_metadata" in acts
        member = platform.directory.keyring.add_key("metadata", "m", "member").text
        headers = {"Authorization": f"Bearer {member}"}
        refused = http.patch("/v1/organisation", json={"image_metadata": True}, headers=headers)
        assert refused.status_code == 403
    finally:
        http.patch("/v1/organisation", json={"image_metadata": True}).raise_for_status()


def test_a_shared_assets_file_is_not_told(
    http: httpx2.Client, platform: Running, sample_files: dict[str, Path]
) -> None:
    shared = {"visibility": "shared", "shared_with": ["reads-metadata"]}
    put_asset(http, sample_files["lora_cross"], "lora", "shared", **shared)
    headers = {"Authorization": f"Bearer {platform.key('reads-metadata')}"}
    with httpx2.Client(base_url=platform.url, headers=headers, timeout=60) as other:
        image = generate(other, loras={"metadata:shared": 1.0})
        found = parameters_of(other, image)
        assert found["prompt"].endswith("<lora:metadata:shared:1>")
        assert "Lora hashes" not in found["settings"]


def test_other_bodies_are_refused(http: httpx2.Client) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    answer = http.post("/v1/images/parameters", content=b"no image", headers=headers)
    assert answer.status_code == 422


def test_a_large_image_is_read_and_a_bomb_is_not_decoded(http: httpx2.Client) -> None:
    file = io.BytesIO()
    Image.effect_noise((1536, 1536), 90).convert("RGB").save(file, "PNG")
    assert len(file.getvalue()) > 4 << 20
    assert parameters_of(http, file.getvalue())["text"] is None
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    assert parameters_of(http, bomb.getvalue())["text"] is None
    headers = {"Content-Type": "application/octet-stream"}
    too_large = http.post("/v1/images/parameters", content=b"x" * (33 << 20), headers=headers)
    assert too_large.status_code == 413


def test_metadata_of_versions_and_weights_makes_the_image_again(
    http: httpx2.Client, sample_files: dict[str, Path]
) -> None:
    put_asset(http, sample_files["lora_all"], "lora", "again")
    put_asset(http, sample_files["lora_cross"], "lora", "again", new_version=True)
    put_asset(http, sample_files["lora_alpha"], "lora", "again", new_version=True)
    image = generate(http, prompt="a star <lora:again@2:0.4:0.9>")
    found = parameters_of(http, image)
    assert found["prompt"] == "a star <lora:again@2:0.4:0.9>"
    plain = generate(http, prompt="a star <lora:again@2:0.4:0.9>", metadata=False)
    assert generate(http, prompt=found["prompt"], metadata=False) == plain
    commons = generate(http, prompt="a star <lora:outline:0.9>")
    assert parameters_of(http, commons)["prompt"] == "a star <lora:commons:outline:0.9>"
