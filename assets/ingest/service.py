"""The ingest service: converts uploads and probes what they change."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from assets.asset import Asset, AssetChanges, AssetKind
from assets.base_model.manifest import load_manifest
from assets.content import Blob, Component, content_key, tenant_salt
from assets.errors import (
    IngestRejected,
    QuotaExceeded,
    StoreError,
)
from assets.failpoint import reach
from assets.formats.coverage import owner_warnings
from assets.ingest.blob_writer import BlobWriter
from assets.ingest.commons import Commons
from assets.ingest.convert import (
    OwnerDeclaration,
    prediction_in,
    with_owners_prediction,
)
from assets.ingest.effect import EffectProbe
from assets.ingest.few_steps import guess
from assets.ingest.importer import Importer
from assets.ingest.sandbox import Sandbox
from assets.library.records import AssetRecords
from assets.library.references import BlobRecords
from assets.library.resolve import BASE_NAME
from assets.library.uploads import MAX_UPLOAD_BYTES
from assets.remote.guarded_http import Fetcher
from assets.remote.huggingface import HUB
from assets.report import EffectReport
from assets.storage.object_paths import upload_key
from assets.storage.object_store import CHUNK_BYTES, ObjectStore

log = logging.getLogger(__name__)


class IngestService:
    """Ingests uploads; :attr:`importer` fetches imports, :attr:`commons` has the operator's files.

    Imports torch, so it needs its own process, not a gateway. It owns the scratch folder and
    removes what a killed predecessor left there.

    Args:
        scratch: a local folder with room for twice the largest upload.
        sandbox: for uploads; the operator's own files are converted in this process.
        quota: a tenant's storage limit in bytes; None is unlimited.
    """

    def __init__(
        self,
        records: AssetRecords,
        blobs: BlobRecords,
        store: ObjectStore,
        secret: bytes,
        scratch: Path,
        now: Callable[[], float] = time.time,
        sandbox: Sandbox | None = None,
        fetcher: Fetcher | None = None,
        hub: str = HUB,
        probe: EffectProbe | None = None,
        quota: Callable[[str], int | None] | None = None,
        keep_originals: bool = True,
    ) -> None:
        self._probe = probe
        self._quota = quota
        self._sandbox = sandbox or Sandbox()
        self._records = records
        self._blobs = blobs
        self._store = store
        self._secret = secret
        self._scratch = scratch
        self.importer = Importer(records, store, fetcher, hub)
        self._writer = BlobWriter(blobs, store, secret, keeps_originals=keep_originals)
        self.commons = Commons(records, store, self._writer, scratch, now)
        _sweep(scratch)

    def close(self) -> None:
        self._sandbox.close()

    def ingest(self, asset_id: str) -> Asset | None:
        """Inspect and convert an ``uploaded`` asset; rekey a ``ready`` one for its current
        visibility.

        It ends ``ready``, ``rejected`` or, after an unexpected failure, ``error``. Safe to repeat.
        """
        asset = self._records.get(asset_id)
        if asset is not None and asset.status == "ready":
            return self._rekey(asset)
        if asset is None or asset.status != "uploaded":
            return asset
        try:
            schema = load_manifest(self._store, BASE_NAME).schema
            self._scratch.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self._scratch, prefix="ingest-") as folder:
                scratch = Path(folder)
                source = scratch / "source"
                digest = self._download(upload_key(asset_id), source)
                if asset.size_bytes and source.stat().st_size != asset.size_bytes:
                    raise IngestRejected("the upload was changed after it was completed")
                self._check_quota(asset)
                expected = asset.expected_sha256
                if expected and not asset.is_import and digest != expected:
                    raise IngestRejected(
                        f"the upload is corrupt: its sha256 is {digest}, expected {expected}; "
                        "upload it again"
                    )
                salt = None if asset.is_public else tenant_salt(self._secret, asset.tenant_id)
                declaration = OwnerDeclaration(
                    prediction=asset.prediction_type, adapter_config=asset.adapter_config
                )
                ingested = self._sandbox.ingest(
                    source, asset.kind, schema, salt, scratch, declaration
                )
                reach("ingest.converted")
                converted = self._writer.keep(ingested, source, digest, asset.tenant_id)
            converted["report"] = converted["report"] | guess(asset, converted["report"])
            details = self._details(asset.kind, converted)
            changes = AssetChanges(status="ready", status_details=details, **converted)
        except IngestRejected as rejection:
            changes = {
                "status": "rejected",
                "status_details": str(rejection),
                "report": {"reasons": list(rejection.reasons)},
            }
        except (StoreError, OSError):  # of the store or the scratch folder
            log.exception("the ingest of %s failed temporarily; will retry", asset_id)
            return asset
        except Exception:
            log.exception("the ingest of %s failed", asset_id)
            changes = {
                "status": "error",
                "status_details": "the inspection of this file failed on the server",
            }
        changed = self._records.update(asset_id, changes, expect=("uploaded",))
        if changed is not None:
            reach("ingest.recorded")
            if changed.status != "error":  # else kept for analysis
                self._store.delete(upload_key(asset_id))
        return changed

    def _rekey(self, asset: Asset) -> Asset | None:
        """Store the blobs under keys for the current visibility (salted if private) and prediction
        type."""
        salt = None if asset.is_public else tenant_salt(self._secret, asset.tenant_id)
        report = with_owners_prediction(asset.report, asset.prediction_type)
        prediction = prediction_in(report)
        parts: dict[Component, Blob] = {}
        for component, blob in asset.parts.items():
            model_fingerprint = str(asset.report["fits"])
            key = content_key(blob.sha256, component, model_fingerprint, salt, prediction)
            parts[component] = renamed = replace(blob, key=key)
            if renamed == blob:
                continue
            self._writer.copy(blob, renamed)
        if parts == dict(asset.parts) and report == asset.report:
            return asset
        return self._records.update(asset.id, {"parts": parts, "report": report}, expect=("ready",))

    def _check_quota(self, asset: Asset) -> None:
        """Check again: concurrent uploads may have exceeded it."""
        limit = None if self._quota is None else self._quota(asset.tenant_id)
        if (
            limit is not None
            and self._blobs.stored_bytes(asset.tenant_id, restorable=False) > limit
        ):
            raise IngestRejected(str(QuotaExceeded("bytes of storage", limit)))

    def _details(self, kind: AssetKind, converted: AssetChanges) -> str:
        details = [self._probe_effect(kind, converted), *owner_warnings(kind, converted["report"])]
        if converted["original"] is None:
            details.append("the uploaded file was not kept: it cannot be downloaded")
        return "; ".join(detail for detail in details if detail)

    def _probe_effect(self, kind: AssetKind, converted: AssetChanges) -> str:
        """Add the effect on a test image to the report; return a warning or ""."""
        if self._probe is None:
            return ""
        try:
            effect = self._probe.probe(kind, converted["parts"])
        except Exception:  # not the file's fault
            log.exception("the probe of an asset's effect failed")
            unknown = EffectReport(
                changes_picture=None, why="the test generation failed on the server"
            )
            converted["report"] = {**converted["report"], "effect": unknown}
            return ""
        if effect is None:
            return ""
        converted["report"] = {**converted["report"], "effect": effect.report()}
        if effect.rms is None:
            raise IngestRejected("with this asset at weight 1, the test image is not finite")
        return "" if effect.rms else "it changes nothing in a test image"

    def _download(self, key: str, path: Path) -> str:
        digest = hashlib.sha256()
        with self._store.open(key) as source, open(path, "wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                if target.tell() > MAX_UPLOAD_BYTES:
                    raise IngestRejected(f"the upload has more than {MAX_UPLOAD_BYTES} bytes")
                digest.update(chunk)
                target.write(chunk)
        return digest.hexdigest()


def _sweep(scratch: Path) -> None:
    """Remove folders of killed ingests."""
    for folder in scratch.glob("ingest-*"):
        shutil.rmtree(folder, ignore_errors=True)
