"""This node's file tiers, from the settings.

Fast to import: a replica fetches its model while importing torch.
"""

from __future__ import annotations

import shutil

from orchestrator.download import StoreSource
from orchestrator.file_tier import FileTier
from orchestrator.provision import Provisioner
from serving.bootstrap.storage import open_store
from serving.settings import Settings


def delete_host_tier(settings: Settings) -> None:
    """Delete the host tier at the platform's stop, unless AO_HOST_DIR sets it.

    The disk tier stays warm.
    """
    if settings.host_dir is None:
        shutil.rmtree(settings.resolved_host_dir, ignore_errors=True)


def open_provisioner(settings: Settings) -> Provisioner:
    """Return this node's file tiers.

    Raises:
        TierUnusable: the host tier's size is impossible.
    """
    return Provisioner(
        StoreSource(open_store(settings)),
        disk=FileTier("disk", settings.resolved_disk_dir, settings.disk_bytes),
        host=FileTier("host", settings.resolved_host_dir, settings.host_bytes),
    )
