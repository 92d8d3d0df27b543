"""Where bytes are converted: the ingest of uploads and the import of the base model."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from assets.asset import COMMONS, Asset
from assets.content import tenant_salt
from assets.errors import IngestRejected, StoreError
from assets.ids import new_asset_id
from assets.import_model import import_model
from assets.ingest import ingest_file
from assets.keys import blob_key, upload_key
from assets.model import ModelManifest, load_manifest
from assets.records import AssetRecords
from assets.resolve import BASE_NAME
from assets.store import CHUNK_BYTES, ObjectStore, put_file

log = logging.getLogger(__name__)


class Workshop:
    """Runs in a process of its own, away from the gateways; imports torch.

    Args:
        secret: the platform's secret, from which tenants' salts are derived.
        scratch: a local folder for files in conversion (as large as the largest upload, twice).
    """

    def __init__(
        self,
        records: AssetRecords,
        store: ObjectStore,
        secret: bytes,
        scratch: Path,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._store = store
        self._secret = secret
        self._scratch = scratch
        self._now = now

    def ingest(self, asset_id: str) -> Asset | None:
        """Inspect and convert an ``uploaded`` asset: it ends ``ready`` or ``rejected``.

        May be repeated after a crash, at any point.
        """
        asset = self._records.get(asset_id)
        if asset is None or asset.status != "uploaded":
            return asset
        try:
            skeleton = load_manifest(self._store, BASE_NAME).skeleton
            self._scratch.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self._scratch, prefix="ingest-") as folder:
                scratch = Path(folder)
                source = scratch / "source"
                digest = self._download(upload_key(asset_id), source)
                salt = None if asset.is_public else tenant_salt(self._secret, asset.tenant_id)
                done = ingest_file(source, asset.kind, skeleton, digest, salt, scratch)
                for blob, path in done.files.values():
                    if self._store.size(blob_key(blob)) != blob.size_bytes:
                        put_file(self._store, blob_key(blob), path)
            parts = {component: blob for component, (blob, _) in done.files.items()}
            changes: dict[str, Any] = {
                "status": "ready",
                "status_details": "",
                "parts": parts,
                "report": {**done.report, "source_sha256": digest},
            }
        except IngestRejected as rejection:
            changes = {
                "status": "rejected",
                "status_details": str(rejection),
                "report": {"reasons": list(rejection.reasons)},
            }
        except StoreError:
            log.exception(
                "the store failed while %s was ingested; it will be tried again", asset_id
            )
            return asset
        except Exception:
            log.exception("the ingest of %s broke", asset_id)
            changes = {
                "status": "error",
                "status_details": "the inspection of this file broke on our side",
            }
        changed = self._records.update(asset_id, changes, expect=("uploaded",))
        if changed is not None:
            self._store.delete(upload_key(asset_id))
        return changed

    def _download(self, key: str, path: Path) -> str:
        digest = hashlib.sha256()
        with self._store.open(key) as source, open(path, "wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
        return digest.hexdigest()

    def install_base(
        self, path: Path, progress: Callable[[str], None] = lambda _: None
    ) -> ModelManifest:
        """Import the model at ``path`` and make it the commons' public base checkpoint."""
        manifest = import_model(self._store, path, BASE_NAME, progress)
        parts = manifest.parts
        size = sum(blob.size_bytes for blob in parts.values())
        known = self._records.find_public(COMMONS, BASE_NAME)
        if known is None:
            self._records.add(
                Asset(
                    id=new_asset_id(self._now()),
                    tenant_id=COMMONS,
                    owner=COMMONS,
                    name=BASE_NAME,
                    kind="checkpoint",
                    created_at_s=self._now(),
                    status="ready",
                    description=f"the served base model ({manifest.native_size} px)",
                    is_public=True,
                    size_bytes=size,
                    data={"engine": "image/stable-diffusion-xl-v1-0"},
                    parts=parts,
                    report={"fits": manifest.skeleton.digest},
                )
            )
        elif dict(known.parts) != dict(parts):
            report = {"fits": manifest.skeleton.digest}
            self._records.update(known.id, {"parts": parts, "size_bytes": size, "report": report})
        return manifest
