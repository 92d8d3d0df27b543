"""Imports by URL and repository, from a loopback server."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import save_file

from tests.support.platforms import Running, running

ALLOWED = "127.0.0.2"


class Origin(BaseHTTPRequestHandler):
    """Serves ``files``: bytes or responders."""

    files: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]]

    def do_GET(self) -> None:
        file = self.files.get(self.path)
        if file is None:
            self.send_error(404)
        elif callable(file):
            file(self)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(file)))
            self.end_headers()
            self.wfile.write(file)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def origin() -> Iterator[Any]:
    files: dict[str, Any] = {}
    handler = type("Handler", (Origin,), {"files": files})
    server = ThreadingHTTPServer((ALLOWED, 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    server.files = files  # type: ignore[attr-defined]
    server.url = f"http://{ALLOWED}:{server.server_port}"  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, origin: Any) -> Iterator[Running]:
    settings: dict[str, Any] = {"import_schemes": ("http",), "import_networks": (f"{ALLOWED}/32",)}
    folder = tmp_path_factory.mktemp("imports")
    with running(folder, "--in-process", replicas=1, hub_url=origin.url, **settings) as server:
        yield server


@pytest.fixture
def http(platform: Running) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {platform.key('acme')}"}
    with httpx2.Client(base_url=platform.url, headers=headers, timeout=60) as client:
        yield client


def create(http: httpx2.Client, name: str, **source: str) -> dict[str, Any]:
    new = {"asset_type": "textual_inversion", "name": name, **source}
    answer = http.post("/v1/assets", json=new)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["asset"])


def await_ingest(
    http: httpx2.Client, asset_id: str, seen: list[str] | None = None
) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        asset = dict(http.get(f"/v1/assets/{asset_id}").json()["asset"])
        if seen is not None:
            seen.append(asset["status_details"])
        if asset["status"] != "uploaded":
            return asset
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_url_import_shows_its_progress(
    http: httpx2.Client, origin: Any, sample_files: dict[str, Path]
) -> None:
    data = sample_files["inversion_long"].read_bytes()

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        step = len(data) // 12
        for start in range(0, len(data), step):
            handler.wfile.write(data[start : start + step])
            time.sleep(0.2)

    origin.files["/slow.safetensors?signature=secret"] = slowly
    url = f"{origin.url}/slow.safetensors?signature=secret"
    created = create(http, "slow", url=url)
    assert created["status"] == "uploaded"
    seen: list[str] = []
    asset = await_ingest(http, created["id"], seen)
    assert asset["status"] == "ready", asset
    assert any("%" in details for details in seen), seen
    assert asset["size_bytes"] == len(data)
    assert asset["url"] == f"{origin.url}/slow.safetensors"  # without the signature
    assert asset["report"]["source_sha256"] == hashlib.sha256(data).hexdigest()


def test_a_repository_import_checks_the_digest(
    http: httpx2.Client, origin: Any, sample_files: dict[str, Path]
) -> None:
    data = sample_files["inversion"].read_bytes()
    digest = hashlib.sha256(data).hexdigest()

    def listing(sha256: str) -> bytes:
        file = {"rfilename": "word.safetensors", "lfs": {"sha256": sha256}}
        return json.dumps({"sha": "abc", "siblings": [{"rfilename": "README.md"}, file]}).encode()

    origin.files["/artist/word/resolve/abc/word.safetensors"] = data
    origin.files["/api/models/artist/word?blobs=true"] = listing(digest)
    asset = await_ingest(http, create(http, "hub", hf_repo="artist/word")["id"])
    assert (asset["status"], asset["hf_repo"]) == ("ready", "artist/word")
    origin.files["/api/models/artist/word?blobs=true"] = listing("0" * 64)
    asset = await_ingest(http, create(http, "hub-2", hf_repo="artist/word")["id"])
    assert asset["status"] == "rejected"
    assert "does not have the expected sha256" in asset["status_details"]
    origin.files["/api/models/artist/word?blobs=true"] = json.dumps({"siblings": []}).encode()
    asset = await_ingest(http, create(http, "hub-3", hf_repo="artist/word")["id"])
    assert "say which file" in asset["status_details"]


def test_a_repository_import_includes_the_adapter_configuration(
    http: httpx2.Client, origin: Any, schema: Any, tmp_path: Path
) -> None:
    """PEFT stores alpha in adapter_config.json, not in the weights file."""
    module = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    out, inputs = schema.components["unet"][f"{module}.weight"]
    tensors = {
        f"base_model.model.{module}.lora_A.weight": torch.randn(16, inputs),
        f"base_model.model.{module}.lora_B.weight": torch.randn(out, 16),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    names = ("adapter_model.safetensors", "adapter_config.json")
    listing = {"sha": "abc", "siblings": [{"rfilename": name} for name in names]}
    config = {"r": 16, "lora_alpha": 16, "use_rslora": True}
    base = "/artist/peft/resolve/abc"
    origin.files["/api/models/artist/peft?blobs=true"] = json.dumps(listing).encode()
    origin.files[f"{base}/{names[0]}"] = (tmp_path / "x.safetensors").read_bytes()
    origin.files[f"{base}/{names[1]}"] = json.dumps(config).encode()
    created = http.post(
        "/v1/assets", json={"asset_type": "lora", "name": "peft", "hf_repo": "artist/peft"}
    ).json()
    asset = await_ingest(http, created["asset"]["id"])
    assert (asset["status"], asset["report"]["alpha"]) == ("ready", "configuration")
    origin.files[f"{base}/{names[1]}"] = json.dumps({**config, "lora_bias": True}).encode()
    created = http.post(
        "/v1/assets", json={"asset_type": "lora", "name": "peft-2", "hf_repo": "artist/peft"}
    ).json()
    asset = await_ingest(http, created["asset"]["id"])
    assert asset["status"] == "rejected"
    assert "lora_bias" in asset["status_details"]


def test_a_failed_import_states_the_reason(
    http: httpx2.Client, origin: Any, platform: Running
) -> None:
    def redirect_inside(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"{platform.url}/v1/status")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    origin.files["/inside"] = redirect_inside
    origin.files["/page"] = b"<html>not found</html>"
    for name, path, reason in (
        ("inside", "/inside", "not on the public internet"),
        ("missing", "/missing", "answered 404"),
        ("page", "/page", "not a safetensors file"),
    ):
        asset = await_ingest(http, create(http, name, url=origin.url + path)["id"])
        assert asset["status"] == "rejected"
        assert reason in asset["status_details"]
        assert asset["report"]["reasons"]
    folder = platform.settings.data_dir / "store" / "uploads"
    assert not [path for path in folder.glob("**/*") if path.is_file()]


def test_invalid_sources_are_refused_immediately(http: httpx2.Client, origin: Any) -> None:
    for source in (
        {"url": "file:///etc/passwd"},
        {"url": "http://user:pw@127.0.0.2/"},
        {"hf_repo": "../../etc"},
        {"hf_repo": "a/b", "url": f"{origin.url}/x"},
        {"hf_repo": "a/b", "hf_token_secret": "mine"},
    ):
        new = {"asset_type": "lora", "name": "bad", **source}
        answer = http.post("/v1/assets", json=new)
        assert answer.status_code == 422, answer.text
        assert answer.json()["detail"]
    assert http.get("/v1/assets", params={"name": "bad"}).json()["total"] == 0


def test_a_deleted_import_stops(http: httpx2.Client, origin: Any, platform: Running) -> None:
    stopped = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
                time.sleep(0.01)
        except OSError:
            stopped.set()

    origin.files["/endless"] = endless
    asset = create(http, "endless", url=f"{origin.url}/endless")
    deadline = time.monotonic() + 30
    while "importing" not in http.get("/v1/assets/endless").json()["asset"]["status_details"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert http.delete(f"/v1/assets/{asset['id']}").is_success
    assert stopped.wait(30)
    folder = platform.settings.data_dir / "store" / "uploads"
    while [path for path in folder.glob("**/*") if path.is_file()]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
