"""Where bytes are converted: the ingest of uploads and the import of the base model."""

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
from typing import Any

from assets.asset import COMMONS, SERVED_ENGINE, Asset, AssetKind
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
from assets.formats.coverage import shortfalls
from assets.ids import new_asset_id
from assets.ingest.convert import (
    Ingested,
    OwnersWord,
    ingest_file,
    prediction_in,
    with_owners_prediction,
)
from assets.ingest.effect import EffectProbe
from assets.ingest.sandbox import Cage
from assets.library.records import AssetRecords
from assets.library.references import BlobRecords
from assets.library.resolve import BASE_NAME
from assets.library.uploads import MAX_UPLOAD_BYTES
from assets.prediction import Prediction
from assets.remote.guarded_http import Fetcher
from assets.remote.huggingface import HUB, find_file
from assets.storage.object_paths import blob_key, preview_key, upload_key
from assets.storage.object_store import CHUNK_BYTES, Digesting, ObjectStore, put_file
from assets.text import is_storable

log = logging.getLogger(__name__)

_CLAIM_PATIENCE_S = 30.0
_MAX_CONFIG_CHARS = 1 << 16
#: How often the progress of an import is told.
_TELL_S = 1.0


class _Abandoned(Exception):
    """Nobody wants these bytes any more, or not from this process."""


class IngestService:
    """Runs in a process of its own, away from the gateways; imports torch. The only one with
    this scratch folder: what it finds there is of one that died.

    Args:
        secret: the platform's secret, from which tenants' salts are derived.
        scratch: a local folder for files in conversion (as large as the largest upload, twice).
        fetcher: what imports come through; hub: where repositories are.
        probe: draws with what was uploaded; quota: how many bytes a tenant may have.
        cage: where uploads are converted; the operator's own files are converted right here.
        keep_originals: whether files are kept as they were uploaded, for downloads.
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
        self._cage = cage or Cage()
        self._records = records
        self._blobs = blobs
        self._store = store
        self._secret = secret
        self._scratch = scratch
        self._now = now
        _sweep(scratch)

    def stop(self) -> None:
        """Transfers end at their next step, to be begun again by the next start."""
        self._stopped.set()

    def close(self) -> None:
        self._cage.close()

    def fetch(self, asset_id: str, attempts: int = 3) -> bool:
        """Bring the bytes of an import into the store, for ``ingest``; whether they are there.

        May be repeated after a crash; it then begins anew.
        """
        asset = self._records.get(asset_id)
        if asset is None or asset.status != "uploaded":
            return False
        if self._store.size(upload_key(asset_id)) is not None:
            return True
        try:
            received = self._transfer(asset)
        except _Abandoned:
            return False
        except (FetchFailed, TooLarge) as error:
            if attempts > 1 and not isinstance(error, FetchRefused | TooLarge):
                return self.fetch(asset_id, attempts - 1)
            reason = f"the import failed: {error}"
            rejected = {"status": "rejected", "status_details": reason}
            rejected["report"] = {"reasons": [reason]}  # type: ignore[assignment]
            self._records.update(asset_id, rejected, expect=("uploaded",))
            return False
        except (StoreError, OSError):
            log.exception("the store failed in the import of %s; it will be tried again", asset_id)
            return False
        except Exception:
            log.exception("the import of %s broke", asset_id)
            broke = {"status": "error", "status_details": "the import broke on our side"}
            self._records.update(asset_id, broke, expect=("uploaded",))
            return False
        changes: dict[str, Any] = {"size_bytes": received, "status_details": "inspecting"}
        return self._records.update(asset_id, changes, expect=("uploaded",)) is not None

    def _transfer(self, asset: Asset) -> int:
        url, sha256 = asset.data.get("url"), asset.data.get("sha256")
        if not url:
            found = find_file(asset.data["hf_repo"], self._fetcher.fetch_json, self._hub)
            url, sha256 = found.url, found.sha256 or sha256
            if found.adapter_config_url and not asset.data.get("adapter_config"):
                config = self._fetcher.fetch_json(found.adapter_config_url)
                text = json.dumps(config, ensure_ascii=False)
                model_fingerprint = len(text) <= _MAX_CONFIG_CHARS and is_storable(text)
                if not isinstance(config, dict) or not model_fingerprint:
                    raise FetchFailed("its adapter_config.json is no object, or too large")
                data = {**asset.data, "adapter_config": config}
                self._records.update(asset.id, {"data": data}, expect=("uploaded",))
        most = int(asset.data.get("max_bytes", MAX_UPLOAD_BYTES))
        told_s = 0.0

        def progress(received: int, said: int | None) -> None:
            nonlocal told_s
            if self._stopped.is_set():
                raise _Abandoned
            if time.monotonic() - told_s >= _TELL_S:
                told_s = time.monotonic()
                of = f" of {said / 1e6:.1f} MB ({received * 100 // said} %)" if said else ""
                details = {"status_details": f"importing: {received / 1e6:.1f} MB{of}"}
                if self._records.update(asset.id, details, expect=("uploaded",)) is None:
                    raise _Abandoned  # deleted in the meantime

        with self._store.write(upload_key(asset.id)) as target:
            digest = Digesting(target)
            received = self._fetcher.fetch(url, digest, most, progress)
            if sha256 and digest.hexdigest() != sha256:
                raise FetchFailed(f"what arrived is not what was announced (sha256 {sha256})")
        return received

    def ingest(self, asset_id: str) -> Asset | None:
        """Inspect and convert an ``uploaded`` asset: it ends ``ready`` or ``rejected``. A ready
        one gets the content keys that its visibility asks for.

        May be repeated after a crash, at any point.
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
                expected = asset.data.get("sha256")
                if expected and not asset.is_import and digest != expected:
                    raise IngestRejected(
                        f"the upload was damaged on its way: its sha256 is {digest}, and "
                        f"{expected} was announced; upload it again"
                    )
                salt = None if asset.is_public else tenant_salt(self._secret, asset.tenant_id)
                word = OwnersWord.of(asset.data)
                done = self._cage.ingest(source, asset.kind, schema, salt, scratch, word)
                reach("ingest.converted")
                converted = self._keep(done, source, digest, asset.tenant_id)
            details = self._details(asset.kind, converted)
            changes: dict[str, Any] = {"status": "ready", "status_details": details, **converted}
        except IngestRejected as rejection:
            changes = {
                "status": "rejected",
                "status_details": str(rejection),
                "report": {"reasons": list(rejection.reasons)},
            }
        except (StoreError, OSError):  # the store's, or the scratch folder's
            log.exception("%s could not be ingested now; it will be tried again", asset_id)
            return asset
        except Exception:
            log.exception("the ingest of %s broke", asset_id)
            changes = {
                "status": "error",
                "status_details": "the inspection of this file broke on our side",
            }
        changed = self._records.update(asset_id, changes, expect=("uploaded",))
        if changed is not None:
            reach("ingest.recorded")
            if changed.status != "error":  # which was ours: somebody will want to look
                self._store.delete(upload_key(asset_id))
        return changed

    def _rekey(self, asset: Asset) -> Asset | None:
        """Salted as long as the asset is private, plain as long as it is public; its UNet under
        what its owner says that it predicts, or else what was found."""
        salt = None if asset.is_public else tenant_salt(self._secret, asset.tenant_id)
        report = with_owners_prediction(asset.report, OwnersWord.of(asset.data).prediction)
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

    def _keep(self, done: Ingested, source: Path, digest: str, tenant_id: str) -> dict[str, Any]:
        """``parts``, ``original`` and ``report`` of the file ``source``, once they are in the
        store."""
        original = None
        if self._keep_originals:
            key = original_key(digest, tenant_salt(self._secret, tenant_id))
            original = Blob(key, digest, source.stat().st_size)
        files = list(done.files.values())
        # What was inspected, and not what lies under the upload's key by now.
        for blob, path in [*files, *([(original, source)] if original is not None else [])]:
            self._claim(blob)
            reach("ingest.claimed")
            if self._store.size(blob_key(blob)) != blob.size_bytes:
                put_file(self._store, blob_key(blob), path)
            reach("ingest.stored")
        parts = {component: blob for component, (blob, _) in done.files.items()}
        report = {**done.report, "source_sha256": digest}
        return {"parts": parts, "original": original, "report": report}

    def _check_quota(self, asset: Asset) -> None:
        """Once more, now that the bytes are counted: several uploads may have come at once.

        Raises:
            IngestRejected: the tenant's plan has no room for it.
        """
        limit = None if self._quota is None else self._quota(asset.tenant_id)
        if (
            limit is not None
            and self._blobs.stored_bytes(asset.tenant_id, restorable=False) > limit
        ):
            raise IngestRejected(str(QuotaExceeded("bytes of storage", limit)))

    def _details(self, kind: AssetKind, converted: dict[str, Any]) -> str:
        """What an owner ought to know of a file that is usable.

        Raises:
            IngestRejected: no image comes of it.
        """
        details = [self._look(kind, converted), *shortfalls(kind, converted["report"])]
        if converted["original"] is None:
            details.append("the uploaded file was not kept: it cannot be downloaded")
        return "; ".join(detail for detail in details if detail)

    def _look(self, kind: AssetKind, converted: dict[str, Any]) -> str:
        """Draw with it, where that is quick; says whether nothing comes of it.

        Raises:
            IngestRejected: no picture comes of it.
        """
        if self._probe is None:
            return ""
        try:
            effect = self._probe.probe(kind, converted["parts"])
        except Exception:  # our trouble, not the file's
            log.exception("the effect of an asset could not be seen")
            unseen = {"changes_picture": None, "why": "it could not be drawn with on our side"}
            converted["report"] = {**converted["report"], "effect": unseen}
            return ""
        if effect is None:
            return ""
        converted["report"] = {**converted["report"], "effect": effect.report()}
        if effect.rms is None:
            raise IngestRejected("with it, at weight 1, the picture is not finite")
        return "" if effect.rms else "it changes nothing in a test picture"

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
                if target.tell() > MAX_UPLOAD_BYTES:
                    raise IngestRejected(f"more than {MAX_UPLOAD_BYTES} bytes")
                digest.update(chunk)
                target.write(chunk)
        return digest.hexdigest()

    def install_base(
        self,
        path: Path,
        progress: Callable[[str], None] = lambda _: None,
        prediction: Prediction | None = None,
    ) -> ModelManifest:
        """Import the model at ``path`` and make it the commons' public base checkpoint.
        ``prediction``: what it predicts, where its files do not say so or are wrong."""
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
                data={"engine": SERVED_ENGINE},
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
        """Make the file at ``path`` the commons' public asset ``name``; False when it is already.

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
            data={
                "engine": SERVED_ENGINE,
                "trigger_words": list(trigger_words),
                "preview": image,
            },
        )
        known = self._records.find_foreign(COMMONS, name)
        if known is not None and (
            known.report.get("source_sha256"), known.report.get("fits"), known.description,
            dict(known.data), known.original is not None,
        ) == (
            digest, schema.digest, description, dict(asset.data), self._keep_originals,
        ):  # fmt: skip
            return False
        if preview and image:
            with self._store.write(image) as target:
                target.write(preview)
        self._scratch.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._scratch, prefix="ingest-") as folder:
            done = ingest_file(path, kind, schema, None, Path(folder))
            converted = self._keep(done, path, digest, COMMONS)
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
        fields = (
            "kind", "status", "description", "size_bytes", "data", "parts", "original", "report",
        )  # fmt: skip
        changes = {field: getattr(asset, field) for field in fields}
        if any(getattr(known, field) != value for field, value in changes.items()):
            self._records.update(known.id, changes)


def _sweep(scratch: Path) -> None:
    """Remove what ingests left that were killed."""
    for folder in scratch.glob("ingest-*"):
        shutil.rmtree(folder, ignore_errors=True)
