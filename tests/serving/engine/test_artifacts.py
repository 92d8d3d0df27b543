"""Stored compiled code: an empty node compiles nothing; bundles without valid HMAC never load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from assets.storage.object_paths import COMPILED
from assets.storage.object_store import FsspecStore, put_bytes, read_bytes
from orchestrator.download import StoreSource
from orchestrator.file_tier import FileTier
from orchestrator.provision import Provisioner
from serving.engine.artifacts import ArtifactStore, artifact_key, load_artifacts
from serving.engine.options import EngineOptions

SECRET = b"s" * 32
KEY = "0" * 40

#: In a subprocess: torch's compiled code and counters are process-wide.
_START = """
import json, sys
from pathlib import Path
from serving.bootstrap import engine as compose
from serving.engine.compiled import compilations
from serving.engine.options import EngineOptions
from serving.settings import Settings
from serving.bootstrap.tiers import open_provisioner
settings = Settings()
few = EngineOptions(compile="regional", compile_blocks=("Downsample2D", "Upsample2D"))
compose.engine_options = lambda *_: few
replica = compose.open_replica(settings, "r", open_provisioner(settings))
replica.close()
print(json.dumps(dict(compilations())))
"""


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., ArtifactStore]:
    def start(name: str = "a", secret: bytes = SECRET) -> ArtifactStore:
        store = FsspecStore(f"file://{tmp_path}/store")
        disk, host = (FileTier(n, tmp_path / name / n, 1 << 20) for n in ("disk", "host"))
        return ArtifactStore(store, Provisioner(StoreSource(store), disk, host), secret)

    return start


@pytest.fixture
def store(tmp_path: Path) -> FsspecStore:
    return FsspecStore(f"file://{tmp_path}/store")


def test_a_published_bundle_is_fetched_by_another_node(node: Callable[..., ArtifactStore]) -> None:
    assert node().fetch(KEY) is None
    node().publish(KEY, b"first")
    assert node("b").fetch(KEY) == b"first"
    node().publish(KEY, b"second")
    assert node("b").fetch(KEY) == b"second"


def test_a_replaced_bundle_is_deleted(
    node: Callable[..., ArtifactStore], store: FsspecStore
) -> None:
    for bundle in (b"first", b"second", b"second"):
        node().publish(KEY, bundle)
        assert len(list(store.list(COMPILED))) == 2


def test_a_changed_byte_is_a_miss(
    node: Callable[..., ArtifactStore],
    store: FsspecStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the bundle or record, in the store or a tier."""
    loaded: list[bytes] = []

    def load(bundle: bytes) -> bytes:
        loaded.append(bundle)
        return bundle

    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", load)
    node().publish(KEY, b"good")
    originals = {stored.key: read_bytes(store, stored.key) for stored in store.list(COMPILED)}
    assert len(originals) == 2
    for index, (name, data) in enumerate(originals.items()):
        for position in range(len(data)):
            changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
            put_bytes(store, name, changed)
            assert not load_artifacts(node(f"n{index}-{position}"), KEY), (name, position)
        put_bytes(store, name, data)
    assert loaded == []
    reader = node("reader")
    assert load_artifacts(reader, KEY)
    for path in (tmp_path / "reader").glob("*/objects/*"):
        path.chmod(0o600)
        path.write_bytes(b"evil")
    assert not load_artifacts(reader, KEY)
    assert load_artifacts(reader, KEY)  # the corrupt copy is gone
    assert loaded == [b"good", b"good"]


def test_a_bundle_of_another_key_or_platform_is_a_miss(
    node: Callable[..., ArtifactStore], store: FsspecStore
) -> None:
    node().publish(KEY, b"good")
    assert node("b", b"t" * 32).fetch(KEY) is None
    record = read_bytes(store, f"{COMPILED}{KEY}.json")
    put_bytes(store, f"{COMPILED}{'1' * 40}.json", record)
    assert node("c").fetch("1" * 40) is None


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[]",
        b"{}",
        b"{" * 5000,
        b'{"key": 1}',
        b"\xff",
        b'{"key": "\\ud800", "sha256": "", "size_bytes": 1, "hmac": ""}',
        b'{"key": "", "sha256": "", "size_bytes": 1, "hmac": "\\ud800"}',
        b'{"key": "", "sha256": "", "size_bytes": Infinity, "hmac": ""}',
        b"[" * 4000,
    ],
)
def test_an_invalid_record_is_a_miss(
    node: Callable[..., ArtifactStore], store: FsspecStore, record: bytes
) -> None:
    put_bytes(store, f"{COMPILED}{KEY}.json", record)
    assert node().fetch(KEY) is None
    node().publish(KEY, b"good")
    assert node("b").fetch(KEY) == b"good"


def test_the_key_depends_on_every_input(bench: Any) -> None:
    device, options = torch.device("cpu"), EngineOptions(compile="regional")
    manifest = bench.manifest
    configs = {**manifest.configs, "unet": {**manifest.configs["unet"], "norm_eps": 1e-3}}

    def key(**changes: Any) -> str:
        inputs = {
            "device": device, "manifest": manifest, "options": options, "sizes": [(64, 64)],
            "batches": [1], **changes,
        }  # fmt: skip
        return artifact_key(**inputs)

    keys = [
        key(),
        key(manifest=replace(manifest, configs=configs)),
        key(options=replace(options, compile="full")),
        key(options=replace(options, compile_vae=False)),
        key(options=replace(options, attention=("math",))),
        key(sizes=[(64, 72)]),
        key(batches=[1, 2]),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's CPU backend needs a C++ compiler")
def test_a_node_with_an_empty_disk_compiles_nothing(bench: Any, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TORCHINDUCTOR")}
    environment |= {
        "AO_STORE_URL": f"file://{bench.folder}/store", "AO_SECRET": "s" * 32,
        "AO_WARM_SIZES": '["1024x1024"]', "AO_LOG_LEVEL": "info",
    }  # fmt: skip
    counts = []
    for node in ("a", "b"):
        environment["AO_DATA_DIR"] = str(tmp_path / node)
        environment["AO_HOST_DIR"] = str(tmp_path / node / "host")
        completed = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _START],
            capture_output=True, text=True, check=False, env=environment, timeout=280,
            cwd=Path(__file__).parents[3],
        )  # fmt: skip
        assert completed.returncode == 0, completed.stderr[-2000:]
        counts.append(json.loads(completed.stdout.splitlines()[-1]))
    assert counts[0]["compiled"] > 0, counts
    assert counts[1]["compiled"] == 0
    assert counts[1]["graphs"] == counts[0]["graphs"]
    assert counts[1]["taken"] > 0


def test_a_bundle_that_pytorch_rejects_is_a_miss(
    node: Callable[..., ArtifactStore],
) -> None:
    """The bundle is of another version: PyTorch returns None."""
    node().publish(KEY, b"odd")
    assert not load_artifacts(node("b"), KEY)
