"""The object store, from the settings."""

from __future__ import annotations

from assets.storage.object_store import FsspecStore, ObjectStore
from serving.settings import Settings


def open_store(settings: Settings) -> ObjectStore:
    """The configured object store."""
    return FsspecStore(settings.resolved_store_url, **store_options(settings))


def store_options(settings: Settings) -> dict[str, object]:
    """AO_STORE_OPTIONS with defaults for S3: presigned URLs need signature version 4, and a ranged
    read must not be checked against the whole object's checksum."""
    options = settings.store_options
    if not settings.resolved_store_url.startswith("s3:") or "config_kwargs" in options:
        return options
    config = {"signature_version": "s3v4", "response_checksum_validation": "when_required"}
    config["request_checksum_calculation"] = "when_required"
    return {**options, "config_kwargs": config}
