"""Results of jobs: each image once, as a file, and a document with the rest."""

from __future__ import annotations

import json

import msgspec
from msgspec import Struct, structs

from assets.library.references import BlobRecords
from assets.storage.object_paths import image_key, result_key
from assets.storage.object_store import ObjectStore, put_bytes, read_bytes
from assets.storage.signing import Signer
from serving.generation.contract import GenerationResult, ImageEncoding
from serving.generation.service import Generation
from serving.generation.sizes import Size


class StoredResult(Struct, frozen=True, kw_only=True, tag_field="type", tag="result"):
    """A generation whose images are files."""

    request_id: str
    #: Without images.
    result: GenerationResult
    #: The images' object keys; empty: withheld.
    images: tuple[str, ...]
    seeds: tuple[int, ...]
    width: int
    height: int
    was_scaled: bool
    #: By content key.
    names: dict[str, str]
    #: The images have public URLs, so they outlive the job.
    is_published: bool = False

    def generation(self, images: tuple[bytes, ...] = ()) -> Generation:
        """The generation, with ``images`` if they are needed."""
        return Generation(
            self.request_id,
            structs.replace(self.result, images=images),
            self.seeds,
            Size(self.width, self.height, self.was_scaled),
            self.names,
        )


class EarlierResult:
    """A result of the first release: OctoAI's response, images included."""

    def __init__(self, document: dict[str, object]) -> None:
        self.document = document


class JobResults:
    def __init__(self, store: ObjectStore, blobs: BlobRecords, signer: Signer) -> None:
        self._store = store
        self._blobs = blobs
        self._signer = signer

    def save(
        self, job_id: str, tenant_id: str, generated: Generation, encoding: ImageEncoding
    ) -> None:
        """Store a result, count it as the tenant's. Raises StoreError."""
        keys = []
        for index, image in enumerate(generated.result.images):
            if generated.result.is_removed(index):
                keys.append("")
                continue
            # Stable for a job; always unguessable.
            name = self._signer.derived("picture", job_id, str(index))
            keys.append(image_key(f"{name}.{encoding}"))
            self._put(keys[-1], tenant_id, image)
        size = generated.size
        stored = StoredResult(
            request_id=generated.request_id,
            result=structs.replace(generated.result, images=()),
            images=tuple(keys),
            seeds=generated.seeds,
            width=size.width,
            height=size.height,
            was_scaled=size.scaled,
            names=dict(generated.names),
        )
        self._put(result_key(job_id), tenant_id, msgspec.json.encode(stored))

    def _put(self, key: str, tenant_id: str, data: bytes) -> None:
        put_bytes(self._store, key, data)
        self._blobs.keep(key, tenant_id, len(data))

    def load(self, job_id: str) -> StoredResult | EarlierResult:
        """Raises StoreError: gone."""
        data = read_bytes(self._store, result_key(job_id))
        document = json.loads(data)
        if "type" not in document:
            return EarlierResult(document)
        return msgspec.json.decode(data, type=StoredResult)

    def generation(self, stored: StoredResult) -> Generation:
        """Read the images. Raises StoreError."""
        images = tuple(read_bytes(self._store, key) if key else b"" for key in stored.images)
        return stored.generation(images)

    def publish(self, job_id: str, tenant_id: str, stored: StoredResult) -> None:
        """Keep the images after the job: they have URLs."""
        if not stored.is_published:
            published = structs.replace(stored, is_published=True)
            self._put(result_key(job_id), tenant_id, msgspec.json.encode(published))

    def delete(self, job_id: str) -> None:
        """Delete an expired result, if there is one."""
        keys = [result_key(job_id)]
        if self._store.size(keys[0]) is not None:
            stored = self.load(job_id)
            if isinstance(stored, StoredResult) and not stored.is_published:
                keys += [key for key in stored.images if key]
        for key in reversed(keys):
            self._blobs.unkeep([key])
            self._store.delete(key)
