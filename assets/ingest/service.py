"""The ingest service: fetches imports, converts uploads and imports the base model."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from assets.asset import COMMONS, Asset, AssetChanges, AssetKind, ImportSource
from assets.base_model.import_model import import_model
from assets.base_model.manifest import ModelManifest, load_manifest
from assets.content import Blob, Component, content_key, original_key, tenant_salt
from assets.errors import (
    FetchFailed,
    FetchRefused,
    IngestRejected,
    QuotaExceeded,
    StoreError,
    TooLarge,
)
from assets.failpoint import reach
from assets.formats.coverage import owner_warnings
from assets.ids import new_asset_id
from assets.ingest.convert import (
    Ingested,
    OwnerDeclaration,
    ingest_file,
    prediction_in,
    with_owners_prediction,
)
from assets.ingest.effect import EffectProbe
from assets.ingest.sandbox import Sandbox
from assets.library.records import AssetRecords
from assets.library.references import BlobRecords
from assets.library.resolve import BASE_NAME
from assets.library.uploads import MAX_UPLOAD_BYTES
from assets.prediction import Prediction
from assets.remote.guarded_http import Fetcher
from assets.remote.huggingface import HUB, find_file
from assets.storage.object_paths import blob_key, preview_key, upload_key
from assets.storage.object_store import CHUNK_BYTES, HashingWriter, ObjectStore, put_file
from assets.text import is_storable

log = logging.getLogger(__name__)

_CLAIM_TIMEOUT_S = 30.0
_MAX_CONFIG_CHARS = 1 << 16
_PROGRESS_INTERVAL_S = 1.0


class _Cancelled(Exception):
    """The asset was deleted or this service is stopping."""


class IngestService:
    """Ingests uploads and imports. Imports torch, so it needs its own process, not a gateway.

    It owns the scratch folder and removes what a killed predecessor left there.

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
        self._keep_originals = keep_originals
        self._probe = probe
        self._quota = quota
        self._fetcher = fetcher or Fetcher()
        self._hub = hub
        self._stopped = threading.Event()
        self._sandbox = sandbox or Sandbox()
        self._records = records
        self._blobs = blobs
        self._store = store
        self._secret = secret
        self._scratch = scratch
        self._now = now
        _sweep(scratch)

    def stop(self) -> None:
        """Cancel transfers at their next progress report; the next start repeats them."""
        self._stopped.set()

    def close(self) -> None:
        self._sandbox.close()

    def fetch(self, asset_id: str, attempts: int = 3) -> bool:
        """Download an import into the object store; return whether its bytes are there.

        Safe to repeat.
        """
        asset = self._records.get(asset_id)
        if asset is None or asset.status != "uploaded":
            return False
        if self._store.size(upload_key(asset_id)) is not None:
            return True
        try:
            received = self._transfer(asset)
        except _Cancelled:
            return False
        except (FetchFailed, TooLarge) as error:
            if attempts > 1 and not isinstance(error, FetchRefused | TooLarge):
                return self.fetch(asset_id, attempts - 1)
            reason = f"the import failed: {error}"
            rejected = AssetChanges(
                status="rejected", status_details=reason, report={"reasons": [reason]}
            )
            self._records.update(asset_id, rejected, expect=("uploaded",))
            return False
        except (StoreError, OSError):
            log.exception("object store failed during the import of %s; will retry", asset_id)
            return False
        except Exception:
            log.exception("the import of %s failed", asset_id)
            failed = AssetChanges(status="error", status_details="the import failed on the server")
            self._records.update(asset_id, failed, expect=("uploaded",))
            return False
        changes = AssetChanges(size_bytes=received, status_details="inspecting")
        return self._records.update(asset_id, changes, expect=("uploaded",)) is not None

    def _transfer(self, asset: Asset) -> int:
        source = asset.source or ImportSource()
        url, sha256 = source.url, asset.expected_sha256
        if not url:
            hub_file = find_file(source.hf_repo or "", self._fetcher.fetch_json, self._hub)
            url, sha256 = hub_file.url, hub_file.sha256 or sha256
            if hub_file.adapter_config_url and not asset.adapter_config:
                config = self._fetcher.fetch_json(hub_file.adapter_config_url)
                text = json.dumps(config, ensure_ascii=False)
                is_acceptable = len(text) <= _MAX_CONFIG_CHARS and is_storable(text)
                if not isinstance(config, dict) or not is_acceptable:
                    raise FetchFailed(
                        "its adapter_config.json is not an object, has unstorable text or is "
                        f"longer than {_MAX_CONFIG_CHARS} characters"
                    )
                self._records.update(asset.id, {"adapter_config": config}, expect=("uploaded",))
        max_bytes = asset.max_bytes or MAX_UPLOAD_BYTES
        last_update_s = 0.0

        def progress(received: int, total: int | None) -> None:
            nonlocal last_update_s
            if self._stopped.is_set():
                raise _Cancelled
            if time.monotonic() - last_update_s >= _PROGRESS_INTERVAL_S:
                last_update_s = time.monotonic()
                of = f" of {total / 1e6:.1f} MB ({received * 100 // total} %)" if total else ""
                details = AssetChanges(status_details=f"importing: {received / 1e6:.1f} MB{of}")
                if self._records.update(asset.id, details, expect=("uploaded",)) is None:
                    raise _Cancelled  # deleted

        with self._store.write(upload_key(asset.id)) as target:
            digest = HashingWriter(target)
            received = self._fetcher.fetch(url, digest, max_bytes, progress)
            if sha256 and digest.hexdigest() != sha256:
                raise FetchFailed(f"the downloaded file does not have the expected sha256 {sha256}")
        return received

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
                converted = self._keep(ingested, source, digest, asset.tenant_id)
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
            self._claim(renamed)
            if self._store.size(blob_key(renamed)) != blob.size_bytes:
                self._store.copy(blob_key(blob), blob_key(renamed))
        if parts == dict(asset.parts) and report == asset.report:
            return asset
        return self._records.update(asset.id, {"parts": parts, "report": report}, expect=("ready",))

    def _keep(self, ingested: Ingested, source: Path, digest: str, tenant_id: str) -> AssetChanges:
        original = None
        if self._keep_originals:
            key = original_key(digest, tenant_salt(self._secret, tenant_id))
            original = Blob(key, digest, source.stat().st_size)
        files = list(ingested.files.values())
        # The inspected copy: the upload's object may have changed since.
        for blob, path in [*files, *([(original, source)] if original is not None else [])]:
            self._claim(blob)
            reach("ingest.claimed")
            if self._store.size(blob_key(blob)) != blob.size_bytes:
                put_file(self._store, blob_key(blob), path)
            reach("ingest.stored")
        parts = {component: blob for component, (blob, _) in ingested.files.items()}
        report = {**ingested.report, "source_sha256": digest}
        return AssetChanges(parts=parts, original=original, report=report)

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
            unknown = {"changes_picture": None, "why": "the test generation failed on the server"}
            converted["report"] = {**converted["report"], "effect": unknown}
            return ""
        if effect is None:
            return ""
        converted["report"] = {**converted["report"], "effect": effect.report()}
        if effect.rms is None:
            raise IngestRejected("with this asset at weight 1, the test image is not finite")
        return "" if effect.rms else "it changes nothing in a test image"

    def _claim(self, blob: Blob) -> None:
        """Claim a blob before storing it; wait while the collector deletes it."""
        deadline = time.monotonic() + _CLAIM_TIMEOUT_S
        while not self._blobs.claim(blob):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{blob.key} was still being deleted after {_CLAIM_TIMEOUT_S:g} s; try again"
                )
            time.sleep(0.05)

    def _download(self, key: str, path: Path) -> str:
        digest = hashlib.sha256()
        with self._store.open(key) as source, open(path, "wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                if target.tell() > MAX_UPLOAD_BYTES:
                    raise IngestRejected(f"the upload has more than {MAX_UPLOAD_BYTES} bytes")
                digest.update(chunk)
                target.write(chunk)
        return digest.hexdigest()

    def install_base(
        self,
        path: Path,
        progress: Callable[[str], None] = lambda _: None,
        prediction: Prediction | None = None,
    ) -> ModelManifest:
        """Import the model at ``path`` as the commons' public base checkpoint.

        ``prediction`` overrides the type that its files state.
        """
        manifest = import_model(self._store, path, BASE_NAME, progress, prediction=prediction)
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
                parts=parts,
                report={
                    "fits": manifest.schema.digest,
                    "prediction_type": manifest.predicts.report(),
                },
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
        """Publish a file as the commons' public asset ``name``; False if already, unchanged.

        Raises:
            IngestRejected: the file does not fit the served base model.
        """
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        schema = load_manifest(self._store, BASE_NAME).schema
        image = preview and preview_key(f"{COMMONS}-{name}", hashlib.sha256(preview).hexdigest())
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
            trigger_words=tuple(trigger_words),
            preview=image or None,
        )
        known = self._records.find_foreign(COMMONS, name)
        if known is not None and (
            known.report.get("source_sha256"), known.report.get("fits"), known.description,
            known.trigger_words, known.preview, known.original is not None,
        ) == (
            digest, schema.digest, description,
            asset.trigger_words, asset.preview, self._keep_originals,
        ):  # fmt: skip
            return False
        if preview and image:
            with self._store.write(image) as target:
                target.write(preview)
        self._scratch.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._scratch, prefix="ingest-") as folder:
            ingested = ingest_file(path, kind, schema, None, Path(folder))
            converted = self._keep(ingested, path, digest, COMMONS)
        self._put_common(replace(asset, **converted))
        return True

    def withdraw(self, name: str) -> None:
        """Delete the commons' asset ``name``, if it exists."""
        if known := self._records.find_foreign(COMMONS, name):
            self._records.update(known.id, {"status": "deleted", "deleted_at_s": self._now()})

    def _put_common(self, asset: Asset) -> None:
        known = self._records.find_foreign(COMMONS, asset.name)
        if known is None:
            self._records.add(asset)
            return
        changes = AssetChanges(
            kind=asset.kind,
            status=asset.status,
            description=asset.description,
            size_bytes=asset.size_bytes,
            trigger_words=asset.trigger_words,
            preview=asset.preview,
            parts=asset.parts,
            original=asset.original,
            report=asset.report,
        )
        if any(getattr(known, name) != value for name, value in changes.items()):
            self._records.update(known.id, changes)


def _sweep(scratch: Path) -> None:
    """Remove folders of killed ingests."""
    for folder in scratch.glob("ingest-*"):
        shutil.rmtree(folder, ignore_errors=True)
