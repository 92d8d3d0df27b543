"""The ingest queue of a process: concurrent transfers, one conversion at a time."""

from __future__ import annotations

from functools import partial

from assets.asset import Asset
from assets.ingest.service import IngestService
from assets.ingest.tenant_pool import TenantPool
from assets.library.library import Library

_FETCHES = 8
_FETCHES_PER_TENANT = 2


class IngestQueue:
    """Queues imports and conversions on threads; resubmits unfinished uploads on start. Close
    it."""

    def __init__(self, ingest_service: IngestService, library: Library) -> None:
        self._service = ingest_service
        self._fetches = TenantPool("fetch", _FETCHES, _FETCHES_PER_TENANT)
        self._ingests = TenantPool("ingest", 1, 1)
        for asset in library.upkeep.stale_uploads(0.0):
            self.submit(asset)

    def submit(self, asset: Asset) -> None:
        if asset.is_import and asset.status == "uploaded":
            self._fetches.submit(asset.tenant_id, asset.id, partial(self._fetch, asset))
        else:
            self._ingest(asset)

    def _fetch(self, asset: Asset) -> None:
        if self._service.importer.fetch(asset.id):
            self._ingest(asset)

    def _ingest(self, asset: Asset) -> None:
        self._ingests.submit(asset.tenant_id, asset.id, partial(self._service.ingest, asset.id))

    def close(self) -> None:
        self._service.importer.stop()
        self._fetches.close()
        self._ingests.close()
