"""The commons' assets: the base model and the operator's public files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from assets.asset import COMMONS, Asset, AssetChanges, AssetKind
from assets.base_model.import_model import import_model
from assets.base_model.manifest import ModelManifest, load_manifest
from assets.ids import new_asset_id
from assets.ingest.blob_writer import BlobWriter
from assets.ingest.convert import ingest_file
from assets.ingest.few_steps import guess
from assets.library.records import AssetRecords
from assets.library.resolve import BASE_NAME
from assets.prediction import Prediction
from assets.storage.object_paths import preview_key
from assets.storage.object_store import ObjectStore


class Commons:
    """Converts trusted files in this process."""

    def __init__(
        self,
        records: AssetRecords,
        store: ObjectStore,
        writer: BlobWriter,
        scratch: Path,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._store = store
        self._writer = writer
        self._scratch = scratch
        self._now = now

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
            asset.trigger_words, asset.preview, self._writer.keeps_originals,
        ):  # fmt: skip
            return False
        if preview and image:
            with self._store.write(image) as target:
                target.write(preview)
        self._scratch.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._scratch, prefix="ingest-") as folder:
            ingested = ingest_file(path, kind, schema, None, Path(folder))
            converted = self._writer.keep(ingested, path, digest, COMMONS)
            converted["report"] = converted["report"] | guess(asset, converted["report"])
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
