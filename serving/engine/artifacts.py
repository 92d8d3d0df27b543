"""Bundles of compiled code in the object store, for replicas that start on an empty node.

Bundles execute code: one is loaded only if its HMAC, with the platform's secret, proves that a
replica wrote it for this key. Otherwise the replica compiles.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from typing import Any

import diffusers
import torch

from assets.base_model.manifest import ModelManifest
from assets.content import Blob
from assets.errors import AssetError
from assets.storage.object_paths import COMPILED, blob_key
from assets.storage.object_store import ObjectStore, put_bytes, read_bytes
from orchestrator.errors import TierError
from orchestrator.provision import Provisioner
from serving.engine.options import EngineOptions

log = logging.getLogger(__name__)

#: Larger records are ignored; a valid one has about 200 bytes.
_RECORD_BYTES = 4096


def artifact_key(
    device: torch.device,
    manifest: ModelManifest,
    options: EngineOptions,
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
) -> str:
    """Return the digest of all that compiled code depends on; ``sizes`` are (width, height) in
    pixels."""
    if device.type == "cuda":
        processor = (
            f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"
        )
    else:
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    inputs = {
        "processor": processor,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "diffusers": diffusers.__version__,
        "schema": manifest.schema.digest,
        "configs": {part: dict(config) for part, config in manifest.configs.items()},
        "options": asdict(options),
        "shapes": [sorted(sizes), sorted(batches)],
    }
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _version(package: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return ""


class ArtifactStore:
    """Bundles by key; a record per key names the blob and has an HMAC over both."""

    def __init__(self, store: ObjectStore, provisioner: Provisioner, secret: bytes) -> None:
        self._store = store
        self._provisioner = provisioner
        self._secret = hmac.new(secret, b"compiled artifacts", hashlib.sha256).digest()

    def fetch(self, key: str) -> bytes | None:
        """Return the bundle of ``key``; None without a trusted one."""
        blob = self._recorded(key)
        if blob is None:
            return None
        try:
            lease, _ = self._provisioner.acquire(blob)
            with lease:
                bundle = lease.path.read_bytes()
        except (AssetError, TierError, OSError) as error:
            log.info("the compiled bundle %s cannot be fetched: %s", key, error)
            return None
        if hashlib.sha256(bundle).hexdigest() != blob.sha256:
            log.warning("the compiled bundle %s has the wrong sha256: ignored", key)
            self._provisioner.forget(blob.key)
            return None
        return bundle

    def publish(self, key: str, bundle: bytes) -> None:
        """Upload a bundle, replacing the previous one. Raises StoreError."""
        digest = hashlib.sha256(bundle).hexdigest()
        blob = Blob(
            f"c{hashlib.sha256(f'{key}/{digest}'.encode()).hexdigest()[:40]}", digest, len(bundle)
        )
        previous = self._recorded(key)
        put_bytes(self._store, blob_key(blob), bundle)
        record = {
            "key": blob.key, "sha256": blob.sha256, "size_bytes": blob.size_bytes,
            "hmac": self._signature(key, blob),
        }  # fmt: skip
        put_bytes(self._store, _record_key(key), json.dumps(record).encode())
        if previous is not None and previous.key != blob.key:
            self._store.delete(blob_key(previous))

    def _recorded(self, key: str) -> Blob | None:
        """Return the record's blob, if its HMAC is valid."""
        try:
            size_bytes = self._store.size(_record_key(key))
            if size_bytes is None or size_bytes > _RECORD_BYTES:
                return None
            record: Any = json.loads(read_bytes(self._store, _record_key(key)))
            blob = Blob(str(record["key"]), str(record["sha256"]), int(record["size_bytes"]))
            signature = str(record["hmac"]).encode()
            is_valid = hmac.compare_digest(signature, self._signature(key, blob).encode())
        except Exception as error:  # the record is untrusted input
            log.warning("the record of the compiled bundle %s cannot be read: %s", key, error)
            return None
        if not is_valid:
            log.warning("the record of the compiled bundle %s has an invalid HMAC: ignored", key)
            return None
        return blob

    def _signature(self, key: str, blob: Blob) -> str:
        message = f"{key}\n{blob.key}\n{blob.sha256}\n{blob.size_bytes}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


def _record_key(key: str) -> str:
    return f"{COMPILED}{key}.json"


def load_artifacts(artifacts: ArtifactStore, key: str) -> bool:
    """Load a bundle into torch.compile; False if missing or unusable."""
    bundle = artifacts.fetch(key)
    if bundle is None:
        return False
    try:
        if torch.compiler.load_cache_artifacts(bundle) is None:
            raise ValueError("PyTorch does not recognize its format")
    except Exception:  # PyTorch documents no exceptions
        log.exception("the compiled bundle %s cannot be loaded", key)
        return False
    log.info("loaded the compiled bundle %s, %d KiB", key, len(bundle) >> 10)
    return True


def save_artifacts(artifacts: ArtifactStore, key: str) -> None:
    """Publish all compiled code. Failures are only logged."""
    try:
        saved = torch.compiler.save_cache_artifacts()
        if saved is not None:
            artifacts.publish(key, saved[0])
            log.info("published the compiled bundle %s, %d KiB", key, len(saved[0]) >> 10)
    except Exception:  # from the store or PyTorch
        log.exception("the compiled bundle %s cannot be published", key)
