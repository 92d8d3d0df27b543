"""The object store and this node's file tiers, from the settings.

Light to import: a replica begins to fetch its model with this while it imports the rest.
"""

from __future__ import annotations

import shutil

from assets.storage.object_store import FsspecStore, ObjectStore
from orchestrator.download import StoreSource
from orchestrator.file_tier import FileTier
from orchestrator.provision import Provisioner
from serving.settings import Settings


def open_store(settings: Settings) -> ObjectStore:
    return FsspecStore(settings.resolved_store_url, **settings.resolved_store_options)


def give_back_memory(settings: Settings) -> None:
    """Of a platform that ends: the host tier goes, unless a folder was configured for it; the disk
    tier stays warm."""
    if settings.host_dir is None:
        shutil.rmtree(settings.resolved_host_dir, ignore_errors=True)


def open_provisioner(settings: Settings) -> Provisioner:
    """The file tiers of this node, over the object store.

    Raises:
        TierUnusable: the host tier cannot be what it is configured to be.
    """
    return Provisioner(
        StoreSource(open_store(settings)),
        disk=FileTier("disk", settings.resolved_disk_dir, settings.disk_bytes),
        host=FileTier("host", settings.resolved_host_dir, settings.host_bytes),
    )
