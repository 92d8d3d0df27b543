"""A gateway process: HTTP in front of the cluster's dispatchers. Imports no torch."""

from __future__ import annotations

import signal

import ray
from starlette.types import ASGIApp

from assets.base_model.manifest import load_manifest
from assets.library.resolve import BASE_NAME
from assets.storage.private_folder import keep_private
from serving.api.app import create_app
from serving.api.context import Context
from serving.api.throttle import ThrottleMiddleware
from serving.bootstrap.backends import open_backends
from serving.cluster.dispatcher_client import ClusterBackend
from serving.cluster.ingest_client import ClusterIngest
from serving.logs import configure
from serving.settings import Settings


def app() -> ASGIApp:
    """Create a gateway's ASGI application; settings from the environment."""
    keep_private()
    settings = Settings()
    configure(settings.log_format, settings.log_level)
    if not ray.is_initialized():
        # ray.init replaces uvicorn's graceful handler.
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(
            address=settings.ray_address,
            namespace=settings.ray_namespace,
            log_to_driver=False,
            configure_logging=False,
        )
        signal.signal(signal.SIGTERM, on_sigterm)
    backends = open_backends(settings)
    backend = ClusterBackend(settings)
    native_size = load_manifest(backends.store, BASE_NAME).native_size
    ingest = ClusterIngest(settings.ray_namespace)
    context = Context.of(settings, backends, backend, ingest, native_size)
    return ThrottleMiddleware(create_app(context))
