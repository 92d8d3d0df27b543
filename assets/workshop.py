"""Where bytes are converted: the ingest of uploads and the import of the base model."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from assets.asset import COMMONS, SERVED_ENGINE, Asset, AssetKind
from assets.blobs import BlobRecords
from assets.cage import Cage
from assets.content import Blob, tenant_salt
from assets.errors import IngestRejected, StoreError
from assets.ids import new_asset_id
from assets.import_model import import_model
from assets.ingest import Ingested, ingest_file
from assets.keys import blob_key, preview_key, upload_key
from assets.model import ModelManifest, load_manifest
from assets.records import AssetRecords
from assets.resolve import BASE_NAME
from assets.store import CHUNK_BYTES, ObjectStore, put_file

log = logging.getLogger(__name__)

_CLAIM_PATIENCE_S = 30.0


class Workshop:
    """Runs in a process of its own, away from the gateways; imports torch.

    Args:
        secret: the platform's secret, from which tenants' salts are derived.
        scratch: a local folder for files in conversion (as large as the largest upload, twice).
        cage: where uploads are converted; the operator's own files are converted right here.
    """

    def __init__(
        self,
        records: AssetRecords,
        blobs: BlobRecords,
        store: ObjectStore,
        secret: bytes,
        scratch: Path,
        now: Callable[[], float] = time.time,
        cage: Cage | None = None,
    ) -> None:
        self._cage = cage or Cage()
        self._records = records
        self._blobs = blobs
        self._store = store
        self._secret = secret
        self._scratch = scratch
        self._now = now

    def close(self) -> None:
        self._cage.close()

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
                done = self._cage.ingest(source, asset.kind, skeleton, salt, scratch)
                converted = self._keep(done, digest)
            changes: dict[str, Any] = {"status": "ready", "status_details": "", **converted}
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

    def _keep(self, done: Ingested, digest: str) -> dict[str, Any]:
        """``parts`` and ``report`` of a file, once its canonical forms are in the store."""
        for blob, path in done.files.values():
            self._claim(blob)
            if self._store.size(blob_key(blob)) != blob.size_bytes:
                put_file(self._store, blob_key(blob), path)
        parts = {component: blob for component, (blob, _) in done.files.items()}
        return {"parts": parts, "report": {**done.report, "source_sha256": digest}}

    def _claim(self, blob: Blob) -> None:
        """Before its bytes are stored. A collector that is taking it just now is waited for."""
        deadline = time.monotonic() + _CLAIM_PATIENCE_S
        while not self._blobs.claim(blob):
            if time.monotonic() > deadline:
                raise StoreError(f"{blob.key} is being collected")
            time.sleep(0.05)

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
        self._put_common(
            Asset(
                id=new_asset_id(self._now()),
                tenant_id=COMMONS,
                owner=COMMONS,
                name=BASE_NAME,
                kind="checkpoint",
                created_at_s=self._now(),
                status="ready",
                description=f"the served base model ({manifest.native_size} px)",
                visibility="public",
                size_bytes=sum(blob.size_bytes for blob in parts.values()),
                data={"engine": SERVED_ENGINE},
                parts=parts,
                report={"fits": manifest.skeleton.digest},
            )
        )
        return manifest

    def publish(
        self,
        name: str,
        kind: AssetKind,
        path: Path,
        description: str,
        trigger_words: Sequence[str],
        preview: bytes | None,
    ) -> bool:
        """Make the file at ``path`` the commons' public asset ``name``; False when it is already.

        Raises:
            IngestRejected: the file does not fit the served base model.
        """
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        skeleton = load_manifest(self._store, BASE_NAME).skeleton
        picture = preview and preview_key(f"{COMMONS}-{name}", hashlib.sha256(preview).hexdigest())
        asset = Asset(
            id=new_asset_id(self._now()),
            tenant_id=COMMONS,
            owner=COMMONS,
            name=name,
            kind=kind,
            created_at_s=self._now(),
            status="ready",
            description=description,
            visibility="public",
            size_bytes=path.stat().st_size,
            data={
                "engine": SERVED_ENGINE,
                "trigger_words": list(trigger_words),
                "preview": picture,
            },
        )
        known = self._records.find_foreign(COMMONS, name)
        if known is not None and (
            known.report.get("source_sha256"), known.report.get("fits"), known.description,
            dict(known.data),
        ) == (digest, skeleton.digest, description, dict(asset.data)):  # fmt: skip
            return False
        if preview and picture:
            with self._store.write(picture) as target:
                target.write(preview)
        self._scratch.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._scratch, prefix="ingest-") as folder:
            done = ingest_file(path, kind, skeleton, None, Path(folder))
            converted = self._keep(done, digest)
        self._put_common(replace(asset, **converted))
        return True

    def withdraw(self, name: str) -> None:
        """Remove the commons' public asset ``name``, if there is one."""
        if known := self._records.find_foreign(COMMONS, name):
            self._records.update(known.id, {"status": "deleted", "deleted_at_s": self._now()})

    def _put_common(self, asset: Asset) -> None:
        """Add a public asset of the commons, or bring the one of that name up to it."""
        known = self._records.find_foreign(COMMONS, asset.name)
        if known is None:
            self._records.add(asset)
            return
        fields = ("kind", "description", "size_bytes", "data", "parts", "report")
        changes = {field: getattr(asset, field) for field in fields}
        if any(getattr(known, field) != value for field, value in changes.items()):
            self._records.update(known.id, changes)
