"""Ingest in its own process: a crash affects no gateway or replica."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import ray

from assets.asset import Asset
from assets.errors import AssetError
from assets.storage.private_folder import keep_private
from serving.bootstrap.backends import open_backends
from serving.cluster.addressing import INGEST_NAME
from serving.cluster.environment import ON_THE_HEAD
from serving.cluster.sealed_settings import SealedSettings, seal
from serving.logs import configure
from serving.settings import Settings

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class IngestActor:
    """The ingest queue; keeps torch imported. Restarted by Ray, it resumes pending ingests."""

    def __init__(self, sealed: SealedSettings) -> None:
        from assets.ingest.queue import IngestQueue
        from serving.bootstrap.base_model import open_ingest_service

        keep_private()
        settings = sealed.open()
        configure(settings.log_format, settings.log_level)
        self._settings = settings
        backends = open_backends(settings)
        self._ingest_service = open_ingest_service(settings, backends)
        self._queue = IngestQueue(self._ingest_service, backends.library)

    def install_base(self) -> int | Exception:
        """Import base and public library; return the native size in pixels, or the error."""
        from serving.bootstrap.base_model import install_model

        try:
            return install_model(self._settings, self._ingest_service).native_size
        except AssetError as error:
            return error.with_traceback(None)

    def start(self, asset: Asset) -> None:
        self._queue.submit(asset)

    def process(self) -> tuple[str, int]:
        """Node id and process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()


def start_ingest(settings: Settings) -> ActorHandle:
    """Start the actor; return its handle."""
    actor = ray.remote(IngestActor).options(
        name=INGEST_NAME,
        namespace=settings.ray_namespace,
        num_cpus=0,
        resources=ON_THE_HEAD,
        max_restarts=-1,
        max_task_retries=2,
    )
    return actor.remote(seal(settings))
