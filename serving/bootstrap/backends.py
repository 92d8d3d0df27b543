"""The database and object-store backends. Imports no torch or Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from sqlalchemy import Engine

from assets.failpoint import arm
from assets.library.library import Library
from assets.library.reconcile import Reconciler
from assets.remote.guarded_http import Fetcher, Rules
from assets.sql.blobs import SqlBlobRecords
from assets.sql.clock import clock_of
from assets.sql.pins import Pins
from assets.sql.records import SqlAssetRecords
from assets.storage.multipart import open_parts
from assets.storage.object_paths import IMAGES, RESULTS
from assets.storage.object_store import ObjectStore, StoredObject
from serving.bootstrap.database import open_database
from serving.bootstrap.storage import open_store
from serving.jobs.periodic import PeriodicWork
from serving.jobs.store import JobStore
from serving.settings import Settings
from serving.tenants.audit import Audit
from serving.tenants.directory import Directory
from serving.tenants.meter import Meter
from serving.tenants.rate import RateLimiter
from serving.tenants.storage_meter import StorageMeter


@dataclass(frozen=True, slots=True)
class Backends:
    """All users of database and object store."""

    records: SqlAssetRecords
    blobs: SqlBlobRecords
    store: ObjectStore
    library: Library
    directory: Directory
    limiter: RateLimiter
    meter: Meter
    storage_meter: StorageMeter
    audit: Audit
    jobs: JobStore
    periodic: PeriodicWork
    reconciler: Reconciler
    pins: Pins
    database: Engine

    def close(self) -> None:
        self.database.dispose()


def open_fetcher(settings: Settings) -> Fetcher:
    """Return the HTTP client for imports."""
    networks = [ip_network(network) for network in settings.import_networks]
    return Fetcher(Rules(settings.import_schemes, settings.import_hosts, networks))


def open_backends(settings: Settings, now: Callable[[], float] = time.time) -> Backends:
    """Open all backends. ``now`` is in epoch seconds."""
    arm(settings.failpoint)
    engine = open_database(settings.resolved_database_url)
    store = open_store(settings)
    records, blobs = SqlAssetRecords(engine), SqlBlobRecords(engine)
    parts = open_parts(store)
    directory = Directory(engine)
    library = Library(records, blobs, store, parts, quota=directory.storage_limit)
    clock = clock_of(engine)
    meter = Meter(engine, clock)
    jobs = JobStore(engine, meter, clock, settings.results_kept_s)

    def orphaned_results(candidates: Sequence[StoredObject]) -> Collection[str]:
        keys = {
            stored.key.removeprefix(RESULTS).removesuffix(".json"): stored.key
            for stored in candidates
        }
        return [keys[job_id] for job_id in jobs.unknown(keys)]

    def expired_images(candidates: Sequence[StoredObject]) -> Collection[str]:
        kept_s = max(settings.pictures_kept_s, settings.results_kept_s)
        return [s.key for s in candidates if s.changed_at_s < now() - kept_s]

    expired = {RESULTS: orphaned_results, IMAGES: expired_images}
    reconciler = Reconciler(records, blobs, store, parts, expired, now)
    return Backends(
        records, blobs, store, library, directory, RateLimiter(engine), meter,
        StorageMeter(engine, blobs, clock), Audit(engine), jobs, PeriodicWork(engine, clock),
        reconciler, Pins(engine), engine,
    )  # fmt: skip
