"""The cluster's composition root: Ray, the base model, the slots, the dispatcher, the gateways."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from socket import socket
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import ray
import uvicorn
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from uvicorn.supervisors import Multiprocess

from orchestrator.locks import acquire
from serving.cluster.control_plane import ControlPlane
from serving.cluster.dispatcher_actor import start_dispatcher
from serving.cluster.ingest_actor import NAME as INGEST
from serving.cluster.ingest_actor import start_ingest
from serving.cluster.outcome import thrown
from serving.cluster.slots import dispatcher_name
from serving.errors import ServingError
from serving.settings import Settings

Progress = Callable[[str], None]
log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 256 << 20
_START_TIMEOUT_S = 600.0
#: For one actor to come back.
_RENEWAL_S = 120.0
#: What the processes import that a renewal starts.
_RENEWED = (
    "serving.cluster.dispatcher_actor",
    "serving.cluster.gateway",
    "serving.cluster.ingest_actor",
    "serving.engine.compose",
    "serving.engine.install",
)


class StartFailed(ServingError):
    """The platform did not come up; says which part and what Ray said of it."""


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """With this data folder, which another would take the tiers and Ray's tables of."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = acquire(folder / "serve.lock", shared=False, wait=False)
    if lock is None:
        raise StartFailed(
            f"another asset-orchestrator serve uses {folder}: end it, or set AO_DATA_DIR"
        )
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def running_pool(settings: Settings, progress: Progress) -> Iterator[Settings]:
    """A warm pool behind a dispatcher; yields the settings with Ray's real address.

    With ``ray_address`` "local" Ray is started here and ended here; any other cluster
    is only joined and, at the end, rid of what was deployed.

    Raises:
        StartFailed: it does not come up, or another one uses the data folder.
    """
    with _alone(settings.data_dir):
        yield from _running_pool(settings, progress)


def _running_pool(settings: Settings, progress: Progress) -> Iterator[Settings]:
    own = settings.ray_address == "local"
    progress("starting Ray on this machine" if own else f"joining Ray at {settings.ray_address}")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    dispatchers: dict[str, Any] = {}
    control_plane = ControlPlane(settings.data_dir) if own else None
    is_started = False
    try:
        _connect(settings, control_plane)
        is_started = True
        address = ray.get_runtime_context().gcs_address
        settings = settings.model_copy(update={"ray_address": address})
        ingest = start_ingest(settings)
        progress("importing the base model")
        native = thrown(ray.get(ingest.install_base.remote(), timeout=_START_TIMEOUT_S))
        serve.start(proxy_location="Disabled")
        pools = settings.resolved_pools
        least = sum(pool.min for pool in pools)
        progress(f"warming {least} replicas (native size {native} px)")
        dispatchers = {pool.name: start_dispatcher(settings, pool) for pool in pools}
        _await_pools(dispatchers, progress)
        yield settings
        del ingest
    finally:
        progress("stopping")
        if not own:
            _withdraw(dispatchers)
        ray.shutdown()
        if control_plane is not None:
            control_plane.close()
        if own and is_started and settings.host_dir is None:
            # Memory goes back with the platform that took it; the disk tier stays warm.
            shutil.rmtree(settings.resolved_host_dir, ignore_errors=True)


def _connect(settings: Settings, control_plane: ControlPlane | None) -> None:
    if control_plane is None:
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
        num_cpus=max(os.cpu_count() or 1, sum(pool.max for pool in settings.resolved_pools) + 2),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        _system_config=control_plane.settings,
        **options,
    )
    control_plane.watch()


def _await_pools(dispatchers: Mapping[str, Any], progress: Progress) -> None:
    """Until each pool has as many replicas as it has at least."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    warm: set[str] = set()
    pending = dict(dispatchers)
    while pending:
        for name, dispatcher in list(pending.items()):
            pool = ray.get(dispatcher.pool.remote(), timeout=60)
            for event in pool["events"]:
                if event["what"] == "failed":
                    reason = event["details"]["reason"]
                    raise StartFailed(f"{event['replica']} did not start: {reason}")
            up = {replica["id"] for replica in pool["replicas"] if replica["state"] == "up"}
            for replica in sorted(up - warm):
                progress(f"{replica} is warm")
            warm |= up
            if len(up) >= pool["min"]:
                del pending[name]
        if time.monotonic() > deadline:
            raise StartFailed(f"{', '.join(pending)} not warm in {_START_TIMEOUT_S:.0f} s")
        if pending:
            time.sleep(0.2)


def _withdraw(dispatchers: Mapping[str, Any]) -> None:
    """From a cluster that goes on without us: first those who would start more."""
    if not dispatchers:
        return
    for dispatcher in dispatchers.values():
        ray.kill(dispatcher)
    for name in serve.status().applications:
        if name.rpartition("-")[0] in dispatchers:
            serve.delete(name, _blocking=False)


def serve_forever(settings: Settings, progress: Progress) -> None:
    """Run the platform until a signal ends it. SIGHUP renews it, part by part, while it serves."""
    with running_pool(settings, progress) as running, TemporaryDirectory() as counters:
        os.environ.update(running.to_environment(), PROMETHEUS_MULTIPROC_DIR=counters)
        config = uvicorn.Config(
            "serving.cluster.gateway:app",
            factory=True,
            host=running.host,
            port=running.port,
            workers=running.gateways,
            log_config=None,  # ours, as everything's
            timeout_worker_healthcheck=60,
            timeout_graceful_shutdown=settings.drain_s,
        )
        gateways = _Gateways(config, [config.bind_socket()], partial(_renew, running, progress))
        progress(f"serving on {running.resolved_public_url} with {running.gateways} gateways")
        try:
            gateways.run()
        finally:
            gateways.close()


class _Gateways(Multiprocess):
    """One socket, shared: what a dead gateway had not accepted, another accepts, and the
    supervisor starts a dead one anew."""

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket], renew: Callable[[Event], None]
    ) -> None:
        """``renew`` renews what is behind the gateways, and gives up when the event is set."""
        super().__init__(config, sockets)
        self._renew = renew
        self._renewing: Thread | None = None
        self._is_renewed = False
        for number in (signal.SIGTERM, signal.SIGINT):  # while it waits for a gateway, too
            signal.signal(number, lambda *_: self.should_exit.set())

    def close(self) -> None:
        """Whatever it was that ended: nothing of this may outlive Ray."""
        self.should_exit.set()
        self.terminate_all()
        self.join_all()
        if self._renewing is not None:
            self._renewing.join(timeout=10)

    def handle_hup(self) -> None:
        """New code is on the disk: first those behind the gateways, then they themselves, each
        once the one that replaces it serves. Beside this thread, which watches over them."""
        if self._renewing is not None and self._renewing.is_alive():
            log.warning("a renewal is under way already")
            return
        self._renewing = Thread(target=self._renew_pools, name="renewal", daemon=True)
        self._renewing.start()

    def _renew_pools(self) -> None:
        try:
            self._renew(self.should_exit)
            self._is_renewed = True
        except Exception:
            log.exception("the pools are not renewed, and the gateways stay")

    def keep_subprocess_alive(self) -> None:
        super().keep_subprocess_alive()
        if self._is_renewed:
            self._is_renewed = False
            self.restart_all()


def _renew(settings: Settings, progress: Progress, is_ending: Event) -> None:
    """The dispatchers and the ingest at once (what was asked of them is asked again of the new
    ones); then, by and by, every replica. Nothing, when the new code cannot be imported."""
    tried = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(_RENEWED)}"], capture_output=True, text=True
    )
    if tried.returncode:
        raise StartFailed(f"the code on the disk cannot be imported: {tried.stderr[-2000:]}")
    for name in (*(dispatcher_name(pool.name) for pool in settings.resolved_pools), INGEST):
        progress(f"renewing {name}")
        actor = ray.get_actor(name, settings.ray_namespace)
        old = _process(actor)
        ray.kill(actor, no_restart=False)
        deadline = time.monotonic() + _RENEWAL_S
        while _process(actor) in (None, old):  # it may still answer, and then is away
            if is_ending.is_set() or time.monotonic() > deadline:
                raise StartFailed(f"{name} did not come back")
            time.sleep(0.1)
        if name != INGEST:
            ray.get(actor.renew.remote(), timeout=_RENEWAL_S)


def _process(actor: Any) -> tuple[str, int] | None:
    """None while there is none, or none that can say so."""
    try:
        found: tuple[str, int] = ray.get(actor.process.remote(), timeout=_RENEWAL_S)
    except (RayActorError, RayTaskError):
        return None
    return found
