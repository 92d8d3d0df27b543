"""Object keys by kind of object. They contain ids and digests, never users' names."""

from __future__ import annotations

from assets.content import Blob

UPLOADS, BLOBS, PREVIEWS = "uploads/", "blobs/", "previews/"
PARTS = "parts/"
RESULTS, IMAGES = "results/", "pictures/"
#: No asset record refers to it.
COMPILED = "compiled/"


def upload_key(asset_id: str) -> str:
    """The file as uploaded."""
    return f"{UPLOADS}{asset_id}"


def parts_prefix(key: str, upload_id: str) -> str:
    return f"{PARTS}{key}/{upload_id}/"


def part_key(key: str, upload_id: str, number: int) -> str:
    return f"{parts_prefix(key, upload_id)}{number:05d}"


def blob_key(blob: Blob) -> str:
    return stored_blob_key(blob.key)


def stored_blob_key(content_key: str) -> str:
    """By content key: ``c…`` compiled code, ``p…`` public, ``t…`` a tenant's."""
    if content_key.startswith("c"):
        return f"{COMPILED}{content_key}"
    return f"{BLOBS}{content_key[:3]}/{content_key}"


def blob_of(key: str) -> str:
    """The content key of an object key."""
    return key.rpartition("/")[2]


def model_key(name: str) -> str:
    return f"models/{name}.json"


def preview_key(asset_id: str, sha256: str) -> str:
    """The digest keeps HTTP caches from returning old images."""
    return f"{PREVIEWS}{asset_id}-{sha256[:16]}.png"


def asset_of_preview(key: str) -> str:
    """The asset id of a preview's key."""
    return key.removeprefix(PREVIEWS).rpartition("-")[0]


def image_key(image_id: str) -> str:
    """Served by URL: ``image_id`` is unguessable."""
    return f"{IMAGES}{image_id}"


def result_key(job_id: str) -> str:
    return f"{RESULTS}{job_id}.json"
