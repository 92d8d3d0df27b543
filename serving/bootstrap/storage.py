"""The object store, from the settings."""

from __future__ import annotations

from assets.storage.object_store import FsspecStore, ObjectStore
from serving.settings import Settings


def open_store(settings: Settings) -> ObjectStore:
    """The configured object store."""
    return FsspecStore(settings.resolved_store_url, **settings.resolved_store_options)
