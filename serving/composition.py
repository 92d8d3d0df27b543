"""What both composition roots share, made from the settings; torch-free and Ray-free."""

from __future__ import annotations

from dataclasses import dataclass

from assets.library import Library
from assets.sql.blobs import SqlBlobRecords
from assets.sql.records import SqlAssetRecords
from assets.store import FsspecStore, ObjectStore
from serving.database import open_database
from serving.jobs.jobs import Jobs
from serving.settings import Settings
from serving.tenants.audit import Audit
from serving.tenants.directory import Directory
from serving.tenants.meter import Meter
from serving.tenants.rate import RateLimiter


@dataclass(frozen=True, slots=True)
class Backends:
    """The durable things: rows and bytes."""

    records: SqlAssetRecords
    blobs: SqlBlobRecords
    store: ObjectStore
    library: Library
    directory: Directory
    limiter: RateLimiter
    meter: Meter
    audit: Audit
    jobs: Jobs


def open_store(settings: Settings) -> ObjectStore:
    return FsspecStore(settings.resolved_store_url, **settings.resolved_store_options)


def open_backends(settings: Settings) -> Backends:
    engine = open_database(settings.resolved_database_url)
    store = open_store(settings)
    records, blobs = SqlAssetRecords(engine), SqlBlobRecords(engine)
    library = Library(records, blobs, store)
    meter = Meter(engine, blobs)
    return Backends(
        records, blobs, store, library, Directory(engine), RateLimiter(engine), meter,
        Audit(engine), Jobs(engine, meter),
    )  # fmt: skip
