"""The base model and its ingest service. Imports torch."""

from __future__ import annotations

from collections.abc import Callable

from assets.base_model.manifest import ModelManifest, load_manifest
from assets.ingest.service import IngestService
from assets.library.resolve import BASE_NAME
from orchestrator.download import StoreSource
from orchestrator.file_tier import FileTier
from orchestrator.provision import Provisioner
from serving.bootstrap.backends import Backends, open_fetcher
from serving.bootstrap.secret import platform_secret
from serving.engine.probe import EngineProbe
from serving.miniature.model import identity, write_miniature
from serving.miniature.publish import publish_library, withdraw_library
from serving.settings import Settings


def open_ingest_service(settings: Settings, backends: Backends) -> IngestService:
    """Return the ingest service over the backends."""
    return IngestService(
        backends.records,
        backends.blobs,
        backends.store,
        platform_secret(settings),
        settings.scratch_dir,
        fetcher=open_fetcher(settings),
        hub=settings.hub_url,
        probe=_open_probe(settings, backends) if settings.effect_probe else None,
        quota=backends.directory.storage_limit,
        keep_originals=settings.keep_originals,
    )


_PROBE_BYTES = 1 << 30


def _open_probe(settings: Settings, backends: Backends) -> EngineProbe:
    def provisioner() -> Provisioner:
        """Separate tiers: probing evicts nothing that requests use."""
        folder = settings.scratch_dir / "probe"
        disk, host = (FileTier(name, folder / name, _PROBE_BYTES) for name in ("disk", "host"))
        return Provisioner(StoreSource(backends.store), disk, host)

    return EngineProbe(lambda: load_manifest(backends.store, BASE_NAME), provisioner)


def install_model(
    settings: Settings,
    ingest_service: IngestService,
    progress: Callable[[str], None] = lambda _: None,
) -> ModelManifest:
    """Import the base model, by default the miniature and its library.

    Raises:
        IngestRejected: the model is not SDXL.
    """
    if settings.model is not None:
        prediction = None if settings.prediction_type == "auto" else settings.prediction_type
        manifest = ingest_service.commons.install_base(settings.model, progress, prediction)
        withdraw_library(ingest_service)
        return manifest
    folder = settings.data_dir / "models" / f"miniature-{identity()}"
    manifest = ingest_service.commons.install_base(write_miniature(folder), progress)
    publish_library(ingest_service, progress)
    return manifest
