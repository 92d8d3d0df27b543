"""The cluster's composition root."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from msgspec import msgpack
from ray import serve

from assets.storage.private_folder import private_folder
from orchestrator.locks import acquire
from serving.bootstrap.gpus import check_gpus, sized_for
from serving.bootstrap.tiers import delete_host_tier
from serving.cluster.addressing import dispatcher_name
from serving.cluster.control_plane import ControlPlane
from serving.cluster.dispatcher_actor import start_dispatcher
from serving.cluster.dispatcher_watch import DispatcherWatch
from serving.cluster.gateways import run_gateways
from serving.cluster.ingest_actor import start_ingest
from serving.cluster.outcome import thrown
from serving.cluster.rollout import renew
from serving.errors import ServingError
from serving.generation.status import PoolStatus
from serving.settings import Settings

if TYPE_CHECKING:
    from ray.actor import ActorHandle


Progress = Callable[[str], None]

_OBJECT_STORE_BYTES = 256 << 20
#: Ray's autoscaler may have to create machines.
_START_TIMEOUT_S = 1800.0


class StartFailed(ServingError):
    """The platform did not start; names the part and Ray's reason."""


@contextmanager
def _lock_data_dir(folder: Path) -> Iterator[None]:
    """A second platform would delete this one's tiers and Ray's tables."""
    private_folder(folder)
    lock = acquire(folder / "serve.lock", shared=False, wait=False)
    if lock is None:
        raise StartFailed(
            f"another asset-orchestrator serve uses {folder}: stop it, or set AO_DATA_DIR"
        )
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def running_pool(settings: Settings, progress: Progress) -> Iterator[Settings]:
    """Run warm pools; yields the settings with Ray's real address.

    ``ray_address`` "local" starts and stops Ray. Another cluster is joined; at the end the deployed
    actors are removed.

    Raises:
        StartFailed: no start, or another platform uses the data folder.
    """
    with _lock_data_dir(settings.data_dir):
        yield from _running_pool(settings, progress)


def _running_pool(settings: Settings, progress: Progress) -> Iterator[Settings]:
    is_local = settings.ray_address == "local"
    progress(
        "starting Ray on this machine" if is_local else f"joining Ray at {settings.ray_address}"
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    dispatchers: dict[str, ActorHandle] = {}
    watches: list[DispatcherWatch] = []
    control_plane = ControlPlane(settings.data_dir) if is_local else None
    is_started = False
    try:
        _connect(settings, control_plane)
        is_started = True
        address = ray.get_runtime_context().gcs_address
        gpus = int(ray.cluster_resources().get("GPU", 0))
        settings = sized_for(settings, gpus).model_copy(update={"ray_address": address})
        if is_local:
            _check_gpus(settings, gpus)
        ingest = start_ingest(settings)
        progress("importing the base model")
        native_size = thrown(ray.get(ingest.install_base.remote(), timeout=_START_TIMEOUT_S))
        serve.start(proxy_location="Disabled")
        pools = settings.resolved_pools
        replicas = sum(pool.min for pool in pools)
        progress(f"warming up {replicas} replicas (native size {native_size} px)")
        dispatchers = {pool.name: start_dispatcher(settings, pool) for pool in pools}
        watches += [DispatcherWatch(name, actor) for name, actor in dispatchers.items()]
        _await_pools(dispatchers, progress)
        if is_local:
            _make_private(settings)
        yield settings
        del ingest
    finally:
        progress("stopping")
        for watch in watches:
            watch.close()
        if not is_local:
            _undeploy(dispatchers)
        ray.shutdown()
        if control_plane is not None:
            control_plane.close()
        if is_local and is_started:
            delete_host_tier(settings)


def _check_gpus(settings: Settings, gpus: int) -> None:
    try:
        check_gpus(settings, gpus)
    except ValueError as error:
        raise StartFailed(str(error)) from None


def _connect(settings: Settings, control_plane: ControlPlane | None) -> None:
    if control_plane is None:
        ray.init(
            address=settings.ray_address,
            namespace=settings.ray_namespace,
            log_to_driver=False,
        )
        return
    # Ray opens its folder to all users; the parent is private.
    folder = private_folder(settings.resolved_ray_temp_dir) / "r"
    ray.init(
        address="local",
        namespace=settings.ray_namespace,
        # Logical CPUs: one per replica, two for Serve. The engine sets its threads.
        num_cpus=max(os.cpu_count() or 1, sum(pool.max for pool in settings.resolved_pools)) + 2,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        _system_config=control_plane.settings,
        _temp_dir=str(folder),
    )
    control_plane.watch()


def _make_private(settings: Settings) -> None:
    """Remove other users' permissions, which each starting Ray process grants."""
    for folder, _, _ in os.walk(settings.resolved_ray_temp_dir):
        if not os.path.islink(folder):
            os.chmod(folder, 0o700)


def _await_pools(dispatchers: Mapping[str, ActorHandle], progress: Progress) -> None:
    """Wait for each pool's minimum.

    Raises:
        StartFailed: a replica failed, or a pool was too late.
    """
    deadline = time.monotonic() + _START_TIMEOUT_S
    reported: dict[str, str] = {}
    pending = dict(dispatchers)
    while pending:
        for name, dispatcher in list(pending.items()):
            encoded = ray.get(dispatcher.pool.remote(), timeout=60)
            status = msgpack.decode(encoded, type=PoolStatus)
            assert status.state is not None
            for event in status.state.events:
                if event.kind == "failed":
                    raise StartFailed(f"{event.replica} did not start: {event.reason}")
            phases = {replica.id: replica.phase or "warm" for replica in status.state.replicas}
            for replica, phase in sorted(phases.items()):
                if reported.get(replica) != phase:
                    progress(f"{replica} {'is' if phase == 'warm' else 'starts:'} {phase}")
            reported |= phases
            if list(phases.values()).count("warm") >= status.pool.min:
                del pending[name]
        if time.monotonic() > deadline:
            raise StartFailed(
                f"pools {', '.join(pending)} are not warm after {_START_TIMEOUT_S:.0f} s"
            )
        if pending:
            time.sleep(0.2)


def _undeploy(dispatchers: Mapping[str, ActorHandle]) -> None:
    """Leave a shared cluster; dispatchers go first, because they start replicas."""
    if not dispatchers:
        return
    for dispatcher in dispatchers.values():
        ray.kill(dispatcher)
    for name in serve.status().applications:
        if name.rpartition("-")[0] in dispatchers:
            serve.delete(name, _blocking=False)


def serve_forever(settings: Settings, progress: Progress) -> None:
    """Run the platform until a signal; SIGHUP replaces its processes while it serves."""
    with running_pool(settings, progress) as running:
        run_gateways(running, partial(renew, running, progress), progress)


def serve_gateways(settings: Settings, progress: Progress) -> None:
    """Run only gateways, for :func:`serve_forever` on another node with the same settings.

    SIGHUP replaces them one by one.

    Raises:
        StartFailed: no platform runs on the cluster.
    """
    if settings.ray_address == "local":
        raise StartFailed("set AO_RAY_ADDRESS to the cluster where the platform runs")
    _connect(settings, None)
    try:
        for pool in settings.resolved_pools:
            ray.get_actor(dispatcher_name(pool.name), settings.ray_namespace)
    except ValueError:
        raise StartFailed(
            f"no pool {pool.name} runs on the cluster: start `serve` first, with the same settings"
        ) from None
    finally:
        ray.shutdown()
    run_gateways(settings, lambda _: None, progress)
