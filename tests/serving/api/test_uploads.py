"""Uploads to a real server: multipart, damage, folders, previews."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from serving.bootstrap.backends import open_backends
from serving.cli import transfer
from serving.cli.naming import named
from serving.cli.output import ApiFailure
from tests.support.platforms import Running, running

PART_BYTES = 12 << 20
STORES = ("directory", pytest.param("s3", marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=STORES)
def platform(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    if request.param == "directory":
        yield request.getfixturevalue("shared_platform")
        return
    server = request.getfixturevalue("s3_server")
    store = {"store_url": f"{server['url']}/uploads", "store_options": server["options"]}
    folder = tmp_path_factory.mktemp("uploads")
    with running(folder, "--in-process", replicas=1, **store) as made:
        yield made


@pytest.fixture
def http(platform: Running) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {platform.key('harbour')}"}
    with httpx2.Client(base_url=platform.url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def large(sample_files: dict[str, Path]) -> Path:
    file = sample_files["checkpoint"]
    assert 2 * PART_BYTES < file.stat().st_size < 3 * PART_BYTES
    return file


def begin(http: httpx2.Client, name: str, file: Path, **fields: Any) -> dict[str, Any]:
    new: dict[str, Any] = {"asset_type": "checkpoint", "name": name}
    new |= {
        "transfer_api_type": "multipart",
        "size_bytes": file.stat().st_size,
        "part_bytes": PART_BYTES,
        **fields,
    }
    answer = http.post("/v1/assets", json=new)
    assert answer.status_code == 200, answer.text
    assert answer.json()["transfer_api"]["type"] == "multipart"
    return dict(answer.json()["asset"])


def await_ingest(http: httpx2.Client, asset_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (asset := http.get(f"/v1/assets/{asset_id}").json()["asset"])["status"] == "uploaded":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return dict(asset)


def test_a_multipart_upload_is_resumed(http: httpx2.Client, platform: Running, large: Path) -> None:
    asset = begin(http, "parts", large)
    data, upload_url = large.read_bytes(), f"/v1/assets/{asset['id']}/upload"
    state = http.get(upload_url).json()
    assert (state["part_count"], state["parts"]) == (3, [])
    assert [part["number"] for part in state["missing"]] == [1, 2, 3]
    for part in state["missing"][::-2]:
        piece = data[part["offset"] : part["offset"] + part["size_bytes"]]
        httpx2.put(part["put_url"], content=piece).raise_for_status()
    early = http.post(f"/v1/assets/{asset['id']}/complete-upload", json={})
    assert early.status_code == 422
    assert "1 of 3 parts are missing" in early.json()["message"]
    # Another client, or one after a crash.
    state = http.get(upload_url).json()
    assert [part["number"] for part in state["parts"]] == [1, 3]
    (part,) = state["missing"]
    assert part["number"] == 2
    if not platform.settings.store_url:  # the test's S3 server takes no part twice
        httpx2.put(part["put_url"], content=b"x" * 100).raise_for_status()
        assert [p["number"] for p in http.get(upload_url).json()["missing"]] == [2]
    piece = data[part["offset"] : part["offset"] + part["size_bytes"]]
    httpx2.put(part["put_url"], content=piece).raise_for_status()
    for _ in range(2):
        done = http.post(f"/v1/assets/{asset['id']}/complete-upload", json={})
        assert done.json() == {"error": None}
    ready = await_ingest(http, asset["id"])
    assert (ready["status"], ready["size_bytes"]) == ("ready", len(data)), ready
    assert ready["report"]["source_sha256"] == hashlib.sha256(data).hexdigest()
    assert http.get(upload_url).status_code == 404
    http.delete(f"/v1/assets/{asset['id']}")


def test_an_abort_deletes_the_uploaded_parts(
    http: httpx2.Client, platform: Running, large: Path
) -> None:
    asset = begin(http, "aborted", large)
    upload_url = f"/v1/assets/{asset['id']}/upload"
    first = http.get(upload_url).json()["missing"][0]
    httpx2.put(first["put_url"], content=large.read_bytes()[: first["size_bytes"]])
    assert http.delete(upload_url).is_success
    assert http.delete(upload_url).status_code == 404
    assert http.get(f"/v1/assets/{asset['id']}").status_code == 404
    uploads = open_backends(platform.settings).library.uploads
    assert not [b for b in uploads._parts.begun() if asset["id"] in b.key]
    begin(http, "aborted", large)


def test_an_incomplete_multipart_upload_expires(
    http: httpx2.Client, platform: Running, large: Path
) -> None:
    asset = begin(http, "expired", large)
    first = http.get(f"/v1/assets/{asset['id']}/upload").json()["missing"][0]
    httpx2.put(first["put_url"], content=large.read_bytes()[: first["size_bytes"]])
    later = open_backends(platform.settings, lambda: time.time() + 25 * 3600.0)
    later.reconciler.run()
    assert http.get(f"/v1/assets/{asset['id']}").status_code == 404
    assert not [b for b in later.library.uploads._parts.begun() if asset["id"] in b.key]


@pytest.mark.parametrize(
    "fields", [{"size_bytes": None}, {"size_bytes": 17 << 30}, {"part_bytes": 1}, {"size_bytes": 0}]
)
def test_invalid_multipart_parameters(http: httpx2.Client, fields: dict[str, Any]) -> None:
    new = {"asset_type": "lora", "name": "odd", "transfer_api_type": "multipart", "size_bytes": 9}
    assert http.post("/v1/assets", json={**new, **fields}).status_code == 422
    assert http.get("/v1/assets", params={"name": "odd"}).json()["total"] == 0


def test_damage_in_transit_is_detected(http: httpx2.Client, sample_files: dict[str, Path]) -> None:
    data = bytearray(sample_files["inversion"].read_bytes())
    new = {"asset_type": "textual_inversion", "name": "damaged"}
    new["sha256"] = hashlib.sha256(data).hexdigest()
    created = http.post("/v1/assets", json=new).json()
    data[-1] ^= 1
    httpx2.put(created["transfer_api"]["put_url"], content=bytes(data))
    http.post(f"/v1/assets/{created['asset']['id']}/complete-upload", json={})
    asset = await_ingest(http, created["asset"]["id"])
    assert asset["status"] == "rejected"
    assert "the upload is corrupt" in asset["status_details"]


def run(platform: Running, *arguments: str) -> tuple[int, Any]:
    environment = {"AO_URL": platform.url, "AO_API_KEY": platform.key("artist"), "PATH": "/usr/bin"}
    command = [sys.executable, "-m", "serving.cli.main", "assets", *arguments, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, sample_files: dict[str, Path]) -> Path:
    """A folder in AUTOMATIC1111's layout."""
    folder = tmp_path_factory.mktemp("webui") / "models"
    lora = folder / "Lora" / "style" / "My Style (v2).safetensors"
    embedding = folder / "embeddings" / "shiny.safetensors"
    for target, name in ((lora, "lora_all"), (embedding, "inversion")):
        target.parent.mkdir(parents=True)
        target.write_bytes(sample_files[name].read_bytes())
    card = {"activation text": "my style, vivid", "description": "what I trained in May"}
    lora.with_suffix(".json").write_text(json.dumps(card))
    info = {"trainedWords": ["sparkle"], "model": {"description": "<p>So&nbsp;shiny</p>"}}
    (embedding.parent / "shiny.civitai.info").write_text(json.dumps(info))
    Image.new("RGB", (900, 600), "red").save(lora.with_name("My Style (v2).preview.png"))
    old = folder / "Stable-diffusion" / "old.ckpt"
    old.parent.mkdir()
    old.write_bytes(b"PK\x03\x04")
    (folder / "VAE").mkdir()
    (folder / "VAE" / "broken.safetensors").write_bytes(b"junk")
    return folder


def test_a_models_folder_is_imported(platform: Running, models: Path, tmp_path: Path) -> None:
    status, rows = run(platform, "import-folder", str(models), "--dry-run")
    assert status == 0
    assert {row["status"] for row in rows} == {"skipped", "would be sent"}
    status, rows = run(platform, "import-folder", str(models), "--tag", "mine")
    assert status == 0
    row_of = {Path(row["file"]).name: row for row in rows}
    assert row_of["old.ckpt"]["status"] == "skipped"
    assert "pickle" in row_of["old.ckpt"]["details"]
    assert "not a safetensors file" in row_of["broken.safetensors"]["details"]
    assert {row_of[n]["status"] for n in ("My Style (v2).safetensors", "shiny.safetensors")} == {
        "ready"
    }
    assets = {asset["name"]: asset for asset in run(platform, "ls")[1]}
    style, shiny = assets["My-Style-v2"], assets["shiny"]
    assert style["asset_type"] == "lora"
    assert style["tags"] == ["style", "mine"]
    assert style["data"]["trigger_words"] == ["my style", "vivid"]
    assert style["description"] == "what I trained in May"
    assert shiny["data"]["trigger_words"] == ["sparkle"]
    assert shiny["description"] == "So shiny"
    preview = Image.open(io.BytesIO(httpx2.get(style["preview_url"]).content))
    assert (preview.format, preview.size) == ("PNG", (512, 341))
    # Repeated: nothing is sent. Another file gets another name.
    _, rows = run(platform, "push", str(models))
    assert {r["status"] for r in rows if r["name"]} == {"there already"}
    other = tmp_path / "other" / "My Style (v2).safetensors"
    other.parent.mkdir()
    tensors = load_file(models / "embeddings" / "shiny.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, other)
    status, (row,) = run(platform, "push", str(other))
    assert (status, row["name"], row["kind"]) == (0, "other-My-Style-v2", "textual_inversion")
    assert row["details"] == "My-Style-v2 is another file's name"
    status, (row,) = run(platform, "push", str(other), "--new-version")
    assert row["status"] == "there already"
    again = tmp_path / "My-Style-v2.safetensors"
    save_file({name: 3 * tensor for name, tensor in tensors.items()}, again)
    status, (row,) = run(platform, "push", str(again), "--new-version")
    assert status == 1
    assert "a version of a lora is a lora" in row["details"]


def test_report_warm_pull_update_rm_and_restore(
    platform: Running, models: Path, tmp_path: Path
) -> None:
    run(platform, "push", str(models / "embeddings"))
    assert run(platform, "report", "shiny")[1]["family"] == "SDXL"
    (warmed,) = run(platform, "warm", "shiny")[1]
    replicas = {f"default-{number}" for number in range(platform.settings.replicas or 0)}
    assert set(warmed["found_on"]) == replicas
    (pulled,) = run(platform, "pull", "shiny", "--into", str(tmp_path))[1]
    whole = Path(pulled["file"]).read_bytes()
    assert len(whole) > 500
    # Interrupted downloads resume; damaged ones restart.
    part = tmp_path / ".shiny.safetensors.part"
    part.write_bytes(whole[:200])
    run(platform, "pull", "shiny", "--into", str(tmp_path))
    assert Path(pulled["file"]).read_bytes() == whole
    part.write_bytes(b"x" * 200)
    with pytest.raises(AssertionError, match="corrupted in transit"):
        run(platform, "pull", "shiny", "--into", str(tmp_path))
    assert not part.exists()
    assert run(platform, "update", "shiny", "--licence", "CC0")[1]["license"] == "CC0"
    (gone,) = run(platform, "rm", "shiny")[1]
    assert run(platform, "restore", gone["id"])[1]["name"] == "shiny"


def test_an_interrupted_push_is_resumed(
    platform: Running, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PARTS_FROM_BYTES", 0)
    monkeypatch.setattr(transfer, "_PARTS_AT_ONCE", 1)
    client = platform.client("artist")
    new = {"asset_type": "checkpoint", "name": "cut", "part_bytes": PART_BYTES}
    digest = transfer.sha256_of(large)
    original_put = transfer._put
    puts: list[int] = []

    def fail_third(url: str, path: Path, offset: int, *rest: Any) -> None:
        if len(puts) == 2:
            raise ApiFailure("cut off")
        puts.append(offset)
        original_put(url, path, offset, *rest)

    monkeypatch.setattr(transfer, "_put", fail_third)
    with pytest.raises(ApiFailure):
        transfer.send(client, large, new, digest=digest)
    again: list[int] = []

    def counted(url: str, path: Path, offset: int, *rest: Any) -> None:
        again.append(offset)
        original_put(url, path, offset, *rest)

    monkeypatch.setattr(transfer, "_put", counted)
    begun = named(client, "cut", digest, new_version=False).known
    assert begun is not None
    asset = transfer.send(client, large, new, digest=digest, begun=begun)
    assert sorted(puts + again) == [0, PART_BYTES, 2 * PART_BYTES]
    assert client.await_ready(asset["id"])["version"] == 1
    assert named(client, "cut", digest, new_version=False).known == client.asset(asset["id"])


def test_previews(http: httpx2.Client, platform: Running, sample_files: dict[str, Path]) -> None:
    client = platform.client("harbour")
    asset = client.upload(sample_files["inversion"], "textual_inversion", "seen", "", ["seen"])
    asset = client.await_ready(asset["id"])
    preview_url = f"/v1/assets/{asset['id']}/preview"

    def image(size: tuple[int, int], kind: str = "PNG") -> bytes:
        out = io.BytesIO()
        Image.new("RGB", size, "blue").save(out, kind)
        return out.getvalue()

    for good in (image((64, 64)), image((2048, 2048), "JPEG"), image((64, 9), "WEBP")):
        changed = http.put(preview_url, content=good).json()["asset"]
        fetched = httpx2.get(changed["preview_url"])
        assert fetched.headers["content-type"] == "image/png"
        assert max(Image.open(io.BytesIO(fetched.content)).size) <= 512
    for bad in (b"", b"GIF89a", image((64, 64), "GIF"), image((5000, 5000)), b"<svg/>"):
        assert http.put(preview_url, content=bad).status_code == 422
    assert http.put(preview_url, content=b"x" * (9 << 20)).status_code == 413
    outsider = {"Authorization": f"Bearer {platform.key('outsider')}"}
    assert http.put(preview_url, content=image((8, 8)), headers=outsider).status_code == 404
    before = http.get("/v1/usage").json()["totals"]["pictures"]
    for _ in range(2):
        once = {"Idempotency-Key": "preview"}
        generated = http.post(
            preview_url, json={"prompt": "a small red star", "steps": 2}, headers=once
        )
        assert generated.status_code == 200, generated.text
    assert generated.json()["asset"]["preview_url"] != changed["preview_url"]
    assert http.get("/v1/usage").json()["totals"]["pictures"] == before + 1
    store = open_backends(platform.settings).store
    mine = [s for s in store.list("previews/") if asset["id"] in s.key]
    assert len(mine) == 1  # earlier previews are deleted
