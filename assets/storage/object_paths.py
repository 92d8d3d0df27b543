"""Where each kind of object lies in the store. Made of ids and digests, never of user names."""

from __future__ import annotations

from assets.content import Blob

UPLOADS, BLOBS, PREVIEWS = "uploads/", "blobs/", "previews/"
PARTS = "parts/"
RESULTS, PICTURES = "results/", "pictures/"
#: Compiled code: not of the library, so nothing there refers to it.
COMPILED = "compiled/"


def upload_key(asset_id: str) -> str:
    """The bytes as the client sent them."""
    return f"{UPLOADS}{asset_id}"


def parts_prefix(key: str, upload_id: str) -> str:
    """Where the parts lie of what will be the object ``key``."""
    return f"{PARTS}{key}/{upload_id}/"


def part_key(key: str, upload_id: str, number: int) -> str:
    return f"{parts_prefix(key, upload_id)}{number:05d}"


def blob_key(blob: Blob) -> str:
    """A canonical file, by content."""
    return stored_blob_key(blob.key)


def stored_blob_key(content_key: str) -> str:
    """Content keys begin with ``p`` (public) or ``t`` (a tenant's), those of compiled code with
    ``c``."""
    if content_key.startswith("c"):
        return f"{COMPILED}{content_key}"
    return f"{BLOBS}{content_key[:3]}/{content_key}"


def blob_of(key: str) -> str:
    """The content key of what lies under ``key``."""
    return key.rpartition("/")[2]


def model_key(name: str) -> str:
    """The manifest of a base model."""
    return f"models/{name}.json"


def preview_key(asset_id: str, sha256: str) -> str:
    """An asset's preview picture; another picture has another key, for caches on the way."""
    return f"{PREVIEWS}{asset_id}-{sha256[:16]}.png"


def asset_of_preview(key: str) -> str:
    """The id of the asset whose preview picture lies under ``key``."""
    return key.removeprefix(PREVIEWS).rpartition("-")[0]


def image_key(image_id: str) -> str:
    """A picture made for the simple door; its id is unguessable."""
    return f"{PICTURES}{image_id}"


def result_key(job_id: str) -> str:
    """The answer of an asynchronous request."""
    return f"{RESULTS}{job_id}.json"
