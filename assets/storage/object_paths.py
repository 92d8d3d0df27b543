"""Object keys by kind of object. They contain ids and digests, never names that users chose."""

from __future__ import annotations

from assets.content import Blob

UPLOADS, BLOBS, PREVIEWS = "uploads/", "blobs/", "previews/"
PARTS = "parts/"
RESULTS, IMAGES = "results/", "pictures/"
#: Compiled code, to which no asset record refers.
COMPILED = "compiled/"


def upload_key(asset_id: str) -> str:
    """The key of an asset's file as uploaded."""
    return f"{UPLOADS}{asset_id}"


def parts_prefix(key: str, upload_id: str) -> str:
    """The prefix of the parts of a multipart upload to ``key``."""
    return f"{PARTS}{key}/{upload_id}/"


def part_key(key: str, upload_id: str, number: int) -> str:
    return f"{parts_prefix(key, upload_id)}{number:05d}"


def blob_key(blob: Blob) -> str:
    """The key of a blob."""
    return stored_blob_key(blob.key)


def stored_blob_key(content_key: str) -> str:
    """The object key of a content key: compiled code (``c…``) is stored apart from blobs of assets
    (``p…`` public, ``t…`` a tenant's)."""
    if content_key.startswith("c"):
        return f"{COMPILED}{content_key}"
    return f"{BLOBS}{content_key[:3]}/{content_key}"


def blob_of(key: str) -> str:
    """The content key of the blob stored under ``key``."""
    return key.rpartition("/")[2]


def model_key(name: str) -> str:
    """The key of a base model's manifest."""
    return f"models/{name}.json"


def preview_key(asset_id: str, sha256: str) -> str:
    """The key of an asset's preview image. It contains a digest, so that HTTP caches never return
    an old image."""
    return f"{PREVIEWS}{asset_id}-{sha256[:16]}.png"


def asset_of_preview(key: str) -> str:
    """The id of the asset whose preview image is stored under ``key``."""
    return key.removeprefix(PREVIEWS).rpartition("-")[0]


def image_key(image_id: str) -> str:
    """The key of an image that is served by URL; ``image_id`` is unguessable."""
    return f"{IMAGES}{image_id}"


def result_key(job_id: str) -> str:
    """The key of a job's result."""
    return f"{RESULTS}{job_id}.json"
