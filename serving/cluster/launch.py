"""The cluster's composition root: Ray, the base model, the slots, the dispatcher, the gateways."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
import uvicorn
from ray import serve
from ray.serve.schema import ApplicationStatus

from serving.cluster.dispatcher_actor import start_dispatcher
from serving.cluster.ingest_actor import start_ingest
from serving.cluster.outcome import thrown
from serving.cluster.slots import deploy_slots, slot_name
from serving.errors import ServingError
from serving.settings import Settings

Progress = Callable[[str], None]

_OBJECT_STORE_BYTES = 256 << 20
_START_TIMEOUT_S = 600.0


class StartFailed(ServingError):
    """The platform did not come up; says which part and what Ray said of it."""


@contextmanager
def running_pool(settings: Settings, progress: Progress) -> Iterator[Settings]:
    """A warm pool behind a dispatcher; yields the settings with Ray's real address.

    With ``ray_address`` "local" Ray is started here and ended here; any other cluster
    is only joined and, at the end, rid of what was deployed.
    """
    own = settings.ray_address == "local"
    progress("starting Ray on this machine" if own else f"joining Ray at {settings.ray_address}")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _connect(settings, own)
    try:
        address = ray.get_runtime_context().gcs_address
        settings = settings.model_copy(update={"ray_address": address})
        ingest = start_ingest(settings)
        progress("importing the base model")
        native = thrown(ray.get(ingest.install_base.remote(), timeout=_START_TIMEOUT_S))
        serve.start(proxy_location="Disabled")
        needs_gpu = settings.device.startswith("cuda") or (
            settings.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0
        )
        progress(f"warming {settings.replicas} replicas (native size {native} px)")
        deploy_slots(settings, range(settings.replicas), num_gpus=1 if needs_gpu else 0)
        dispatcher = start_dispatcher(settings)
        _await_slots(settings, progress)
        ray.get(dispatcher.status.remote(), timeout=60)
        yield settings
        del ingest, dispatcher
    finally:
        progress("stopping")
        if not own:
            for index in range(settings.replicas):
                serve.delete(slot_name(index), _blocking=False)
        ray.shutdown()
        if own and settings.host_dir is None:
            # Memory goes back with the platform that took it; the disk tier stays warm.
            shutil.rmtree(settings.resolved_host_dir, ignore_errors=True)


def _connect(settings: Settings, own: bool) -> None:
    if not own:
        ray.init(
            address=settings.ray_address,
            namespace=settings.ray_namespace,
            log_to_driver=False,
        )
        return
    options = {} if settings.ray_temp_dir is None else {"_temp_dir": str(settings.ray_temp_dir)}
    ray.init(
        address="local",
        namespace=settings.ray_namespace,
        # Logical CPUs, one a replica and a few for Serve itself; threads are set by the engine.
        num_cpus=max(os.cpu_count() or 1, settings.replicas + 2),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        **options,
    )


def _await_slots(settings: Settings, progress: Progress) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    pending = {slot_name(index) for index in range(settings.replicas)}
    while pending:
        applications = serve.status().applications
        for name in sorted(pending):
            application = applications.get(name)
            if application is None:
                continue
            if application.status == ApplicationStatus.RUNNING:
                progress(f"{name} is warm")
                pending.discard(name)
            elif application.status == ApplicationStatus.DEPLOY_FAILED:
                reasons = "; ".join(d.message for d in application.deployments.values())
                raise StartFailed(f"{name} did not start: {reasons or application.message}")
        if time.monotonic() > deadline:
            raise StartFailed(f"{', '.join(sorted(pending))} not warm in {_START_TIMEOUT_S:.0f} s")
        if pending:
            time.sleep(0.2)


def serve_forever(settings: Settings, progress: Progress) -> None:
    """Run the platform until a signal ends it."""
    with running_pool(settings, progress) as running:
        os.environ.update(running.to_environment())
        progress(f"serving on {running.resolved_public_url} with {running.gateways} gateways")
        # One socket, shared: what a dead gateway had not accepted, another accepts, and
        # uvicorn's supervisor starts a dead one anew.
        uvicorn.run(
            "serving.cluster.gateway:app",
            factory=True,
            host=running.host,
            port=running.port,
            workers=running.gateways,
            log_level="warning",
            timeout_worker_healthcheck=60,
            timeout_graceful_shutdown=10,
        )
