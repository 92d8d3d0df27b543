"""Original files, prediction types and partly used assets, on a real server."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import load_file, save_file

from assets.content import MODEL_COMPONENTS
from assets.formats.names import single_file_name
from serving.bootstrap.backends import open_backends
from serving.cli.transfer import receive
from serving.miniature.model import weights
from tests.support.platforms import Running, put_asset

PROMPT = {"prompt": "a small red star", "seed": 3, "steps": 2, "image_encoding": "png"}


@pytest.fixture(scope="module")
def http(platform: Running) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {platform.key('archive')}"}
    with httpx2.Client(base_url=platform.url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def files(
    sample_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    vae = {single_file_name("vae", name).name: value for name, value in weights("vae").items()}
    tensors = {
        "lora": load_file(sample_files["lora_all"]),
        "textual_inversion": load_file(sample_files["inversion"]),
        "checkpoint": load_file(sample_files["checkpoint"]),
        "vae": vae,
    }
    paths = {}
    for kind, values in tensors.items():
        paths[kind] = folder / f"{kind}.safetensors"
        metadata = {"ss_training_comment": "mine", "odd": "ネコ"}
        save_file(
            {name: value.contiguous() for name, value in values.items()}, paths[kind], metadata
        )
    return paths


@pytest.mark.parametrize("kind", ["lora", "textual_inversion", "checkpoint", "vae"])
def test_a_download_equals_the_upload(
    http: httpx2.Client, platform: Running, files: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    name = f"ネコ-{kind}"
    put_asset(http, files[kind], kind, name)
    described = http.get(f"/v1/assets/{name}").json()
    digest = hashlib.sha256(files[kind].read_bytes()).hexdigest()
    assert described["transfer_api"]["sha256"] == digest
    assert described["asset"]["report"]["source_sha256"] == digest
    pulled = receive(platform.client("archive"), name, tmp_path)
    assert pulled.read_bytes() == files[kind].read_bytes()
    matches = http.get("/v1/assets", params={"sha256": digest}).json()["data"]
    assert [asset["name"] for asset in matches] == [name]
    # The same content keys.
    again = put_asset(http, pulled, kind, f"again-{kind}")
    records = open_backends(platform.settings).records
    first, second = (records.get(i) for i in (matches[0]["id"], again["id"]))
    assert first is not None
    assert second is not None
    assert (first.parts, first.original) == (second.parts, second.original)


def test_storage_counts_an_original_once(
    http: httpx2.Client, platform: Running, files: dict[str, Path]
) -> None:
    def stored() -> int:
        return int(http.get("/v1/organisation").json()["used"]["storage_bytes"])

    named = put_asset(http, files["lora"], "lora", "counted")
    before = stored()
    twin = put_asset(http, files["lora"], "lora", "counted-twice")
    assert stored() == before
    asset = open_backends(platform.settings).records.get(named["id"])
    assert asset is not None
    assert asset.original is not None
    assert before >= sum(blob.size_bytes for blob in asset.blobs)
    http.delete(f"/v1/assets/{twin['id']}")


def test_the_owner_sets_the_prediction_type(
    http: httpx2.Client, platform: Running, files: dict[str, Path]
) -> None:
    """The type changes content key and image; "auto" restores both."""
    asset = put_asset(http, files["checkpoint"], "checkpoint", "model")
    assert asset["report"]["prediction_type"]["value"] == "epsilon"
    records = open_backends(platform.settings).records

    def unet() -> str:
        record = records.get(asset["id"])
        assert record is not None
        return record.parts["unet"].key

    def image() -> bytes:
        answer = http.post("/generate/sdxl", json={**PROMPT, "checkpoint": "model"})
        return base64.b64decode(answer.raise_for_status().json()["images"][0]["image_b64"])

    def set_type(value: str, suffix: str) -> dict[str, Any]:
        change = http.patch("/v1/assets/model", json={"prediction_type": value})
        change.raise_for_status()
        deadline = time.monotonic() + 30
        while unet() != plain + suffix:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        report: dict[str, Any] = http.get("/v1/assets/model").json()["asset"]["report"]
        return dict(report["prediction_type"])

    plain, first = unet(), image()
    own = set_type("v_prediction", "-v")
    assert (own["value"], own["source"], own["found"]["value"]) == (
        "v_prediction", "owner", "epsilon",
    )  # fmt: skip
    second = image()
    assert set_type("v_prediction_zero_snr", "-vz")["value"] == "v_prediction_zero_snr"
    assert len({first, second, image()}) == 3
    assert set_type("auto", "") == {"value": "epsilon", "source": "nothing says otherwise"}
    assert image() == first
    wrong = http.patch("/v1/assets/model", json={"prediction_type": "banana"})
    assert wrong.status_code == 422
    lora = put_asset(http, files["lora"], "lora", "no-unet")
    wrong = http.patch(f"/v1/assets/{lora['id']}", json={"prediction_type": "epsilon"})
    assert wrong.status_code == 422


def test_a_marked_checkpoint_uses_its_prediction_type(
    http: httpx2.Client, files: dict[str, Path], tmp_path: Path
) -> None:
    marked = tmp_path / "marked.safetensors"
    tensors = load_file(files["checkpoint"])
    save_file({**tensors, "v_pred": torch.tensor([])}, marked)
    plain = put_asset(http, files["checkpoint"], "checkpoint", "as-noise")
    asset = put_asset(http, marked, "checkpoint", "as-velocity")
    assert asset["report"]["prediction_type"] == {
        "value": "v_prediction", "source": "tensor 'v_pred'",
    }  # fmt: skip
    images = [
        http.post("/generate/sdxl", json={**PROMPT, "checkpoint": each["id"]}).json()["images"]
        for each in (plain, asset)
    ]
    assert images[0] != images[1]


def test_partly_used_assets_are_reported(
    http: httpx2.Client, files: dict[str, Path], tmp_path: Path
) -> None:
    tensors = load_file(files["lora"])
    more = {n.replace("lora_unet_", "lora_elsewhere_"): t.clone() for n, t in tensors.items()}
    mixed = tmp_path / "mixed.safetensors"
    save_file({**tensors, **more}, mixed)
    asset = put_asset(http, mixed, "lora", "half")
    used, of = asset["report"]["matched"], asset["report"]["modules"]
    assert used < of
    assert f"{used} of its {of} modules are used" in asset["status_details"]
    answer = http.post("/generate/sdxl", json={**PROMPT, "loras": {"half": 1.0}}).json()
    (warning,) = answer["receipt"]["warnings"]
    assert warning.startswith(f"'half': {used} of its {of} modules are used")

    unet = {n: t for n, t in load_file(files["checkpoint"]).items() if n.startswith("model.")}
    own = {f"text_encoders.clip_l.{index}": torch.ones(4) for index in range(8)}
    save_file({**unet, **own}, mixed)
    asset = put_asset(http, mixed, "checkpoint", "strange-encoders")
    assert "'text_encoders.clip_l.0'" in asset["status_details"]
    missing = ", ".join(c for c in MODEL_COMPONENTS if c != "unet")
    assert f"it contains no {missing}" in asset["status_details"]
